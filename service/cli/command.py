"""Helpers that commands share: progress, failures with one line and an exit code, signals, arguments and help."""

from __future__ import annotations

import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, NoReturn

import typer
from typer.core import TyperGroup

DataFolder = Annotated[Path, typer.Option(help="Folder of data sets, as for heed train.", exists=True, file_okay=False)]


def log(line: str) -> None:
    """Print a line of progress on standard error, because standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def fail(reason: object, code: int = 1) -> NoReturn:
    """Print the reason as one line on standard error and exit. Code 2 stands for a wrong argument or setting."""
    line = " ".join(part.strip() for part in str(reason).splitlines())
    print(f"heed: {line}", file=sys.stderr)
    raise SystemExit(code)


def require_packages(purpose: str, *names: str) -> None:
    """Fail when a package of the extra `train` is missing. Nothing is imported, so this takes no time."""
    for name in names:
        if find_spec(name) is None:
            fail(f"{purpose} needs {name}: pip install 'heed[train]'")


def stop_on_signals() -> None:
    """Raise KeyboardInterrupt on SIGINT and SIGTERM.

    A process that a script started in its background would otherwise ignore SIGINT.
    """
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.default_int_handler)


class GroupWithDefault(TyperGroup):
    """A group with a command that may be left out: `heed explain "some text"` is `heed explain text "some text"`."""

    default: ClassVar[str]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = {*self.commands, "--help"}
        is_complete = args[0] in named if args else self.no_args_is_help
        return super().parse_args(ctx, args if is_complete else [self.default, *args])


def examples(*commands: str) -> str:
    """Return the end of a command's help."""
    return "\n\n".join(["Example:" if len(commands) == 1 else "Examples:", *commands])


def task_argument(description: str, *names: str) -> Any:
    """Return a Typer argument that accepts these names. They are not known to a type checker."""

    def parse(value: str) -> str:
        if value not in names:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(names)}")
        return value

    return typer.Argument(help=description, parser=parse, metavar="|".join(names))
