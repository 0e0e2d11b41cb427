"""Helpers that commands share: progress, failures with one line and an exit code, signals, arguments and help."""

from __future__ import annotations

import signal
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NoReturn

import typer
from typer.core import TyperGroup

from models.installation import MissingPackageError, require_installed
from models.names import list_nearest
from service import settings
from service.settings import Settings

if TYPE_CHECKING:
    from models.runtime.protocol import Device

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
    """Fail when packages of the extra are missing. Nothing is imported, so this takes no time."""
    try:
        require_installed(purpose, *names, extra=extra)
    except MissingPackageError as error:
        fail(error)


def require_runtime(device: Device = "cpu") -> None:
    """Fail before a command does anything if no runtime for the device is installed."""
    from models.runtime import auto

    try:
        auto.require_runtime(device)
    except RuntimeError as error:
        fail(error)


def read_settings(**options: object) -> Settings:
    """Return the settings, which these options override unless they are None.

    Fail with the option, or else the variable, that has an unusable value. The option of a setting has its name, and
    that of a model is `--bundle`.
    """
    try:
        return settings.load_settings(**options)
    except settings.SettingsError as error:
        if options.get(error.name) is None:
            fail(error, 2)
        name = "bundle" if error.name.endswith("_bundle") else error.name.replace("_", "-")
        fail(error.for_option(f"--{name}"), 2)


def describe_data_dir(folder: Path | None) -> str:
    """Return the line by which `heed serve` and the commands on its data show whether their folders are the same."""
    return f"Data folder (HEED_DATA_DIR): {folder or 'none'}"


def fail_missing(kind: str, name: str, folder: Path, names: Iterable[str]) -> NoReturn:
    """Fail because the data folder lacks a head, a reply set or a catalogue. The names are those that it holds."""
    held = list_nearest(names, name) or f"no {kind}"
    fail(
        f"there is no {kind} {name!r} in {folder}, which holds {held}; "
        "if the service has another data folder, name it with --data-dir or HEED_DATA_DIR"
    )


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
