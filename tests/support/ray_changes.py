"""Expectations of Ray whose failures name the workaround to review."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import ray

from service.cluster.ray_workarounds import RAY_VERSION, RayChangedError

RAY = Path(ray.__file__).parent
REPOSITORY = Path(__file__).parent.parent.parent


@contextmanager
def expect_unchanged(workaround: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        pytest.fail(
            f"Ray {version('ray')} is not as `{workaround}` in service/cluster expects. Review that"
            f" function: adapt it or replace it by a new setting of Ray, and then set RAY_VERSION. {error!r}"
        )


def raises_changed(workaround: str, *words: str) -> Any:
    """Expect a RayChangedError that names the workaround, the tested version and the missing part."""
    expected = (*words, RAY_VERSION, workaround)
    return pytest.raises(RayChangedError, match="".join(f"(?=.*{re.escape(word)})" for word in expected))
