"""The compiled load generator, for its tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.bench.chaos.generator.program import compile_program


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of the program."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    return compile_program(tmp_path_factory.mktemp("generator"))
