"""Helpers that commands share: progress, failures with one line and an exit code, signals, arguments and help."""

from __future__ import annotations

import signal
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn

import typer
from typer.core import TyperGroup

UNUSABLE = (OSError, EOFError, ValueError, zlib.error)
"""The exceptions that a missing or faulty file raises, be it data, a configuration or a training folder."""

TRAINING_PACKAGES = ("torch", "transformers", "tensorboard")

DataFolder = Annotated[Path, typer.Option(help="Folder of data sets, as for heed train.", exists=True, file_okay=False)]
TextFolder = Annotated[
    Path, typer.Option(help="Folder of texts, NAME.txt.gz with one text per line.", exists=True, file_okay=False)
]
RunFolder = Annotated[Path, typer.Option(help="Folder to write weights, checkpoints and TensorBoard files to.")]
ConfigFile = Annotated[
    Path | None, typer.Option(help="Configuration in TOML. The default is the shipped one of the task.")
]
TrackedBy = Annotated[
    Literal["wandb"] | None,
    typer.Option(help="Record the run there too, beside TensorBoard. This needs the package wandb."),
]


def log(line: str) -> None:
    """Print a line of progress on standard error, because standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def fail(reason: object, code: int = 1) -> NoReturn:
    """Print the reason as one line on standard error and exit. Code 2 stands for a wrong argument or setting."""
    line = " ".join(part.strip() for part in str(reason).splitlines())
    print(f"heed: {line}", file=sys.stderr)
    raise SystemExit(code)


def require_packages(purpose: str, *names: str, extra: str = "train") -> None:
    """Fail when a package of the extra is missing. Nothing is imported, so this takes no time."""
    for name in names:
        if find_spec(name) is None:
            fail(f"{purpose} needs {name}: pip install 'heed[{extra}]'")


def open_tracker(track: Literal["wandb"] | None) -> Any:
    """Return the tracker of a training run, None for TensorBoard alone. Fail when its package is missing."""
    if track is None:
        return None
    require_packages(f"--track {track}", track, extra="track")
    from models.training.tracking import make_tracker

    return make_tracker([track])


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


def report_run(task: str, data: Path, out: Path) -> None:
    """Print what to do with a finished training folder."""
    print(f"Trained. Make a bundle of it: heed export {out} --data {data} --out models/bundles/{task}")
