"""A tiny bundle to tune for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_bundle import tiny_bundle


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))
