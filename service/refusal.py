"""How a command refuses: one line on standard error, and an exit code."""

from __future__ import annotations

import sys
from typing import NoReturn


def refuse(reason: object, code: int = 1) -> NoReturn:
    print(f"heed: {reason}", file=sys.stderr)
    raise SystemExit(code)
