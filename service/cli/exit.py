"""How a command speaks on standard error, how it refuses with one line and an exit code, and how it is stopped."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn


def say(line: str) -> None:
    """Print a line of progress, away from the standard output, which is for results."""
    print(line, file=sys.stderr, flush=True)


def fail(reason: object, code: int = 1) -> NoReturn:
    print(f"heed: {reason}", file=sys.stderr)
    raise SystemExit(code)


def stop_on_signals() -> None:
    """SIGTERM as Ctrl-C, and that too where a script started us in its background, which would ignore it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
