"""Programs that are passed to other processes as text, which type checkers and renames do not see."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

SERVICE = Path(__file__).parent.parent.parent / "service"
PROGRAM = re.compile(r"from (service\.[\w.]+) import (\w+)")

PROGRAMS = sorted(
    {
        (str(path.relative_to(SERVICE)), *match)
        for path in SERVICE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for match in PROGRAM.findall(node.value)
    }
)


@pytest.mark.parametrize(("file", "module", "name"), PROGRAMS)
def test_a_program_imports_an_existing_function(file: str, module: str, name: str) -> None:
    assert callable(getattr(importlib.import_module(module), name)), f"{file} starts a process with it"


def test_both_programs_are_checked() -> None:
    """`heed serve` and `heed tune` start one program each."""
    assert {(file, name) for file, _, name in PROGRAMS} == {
        ("cluster/local.py", "run_local"),
        ("tuning/throughput.py", "main"),
    }
