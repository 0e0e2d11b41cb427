"""The entry point of `heed`, in a process whose packages are missing."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_without(modules: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.modules.update(dict.fromkeys({modules}))\nfrom service.entry import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, cwd=ROOT
    )


def test_the_command_is_this_entry_point() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert pyproject["project"]["scripts"]["heed"] == "service.entry:main"


@pytest.mark.parametrize("modules", [["ray"], ["fastapi", "tokenizers"], ["typer"], ["pydantic_settings", "structlog"]])
def test_a_missing_package_ends_in_one_line_before_anything_imports_it(modules: list[str]) -> None:
    done = run_without(modules, "serve")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"heed: Heed needs {' and '.join(modules)}, which ")
    assert f"run: {sys.executable} -m pip install " in done.stderr
    assert done.stderr.count("\n") == 1


def test_with_all_packages_the_command_runs() -> None:
    done = run_without([], "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("heed ")
