"""`docs/cli.md`, written from the commands of `heed`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import typer.main

from service.cli.main import app
from tests.docs.table import table

_HEADER = """\
<!-- Written by `make docs` from the commands in service/cli. Do not edit. -->

# Commands

Every command of `heed`, with its arguments and options. `heed --version` prints the version.

`make serve` installs the command as `.venv/serve/bin/heed`. `train`, `answers`, `distill`, `export`, `base`,
`pretrain`, `evaluate`, `faithfulness` and `heed explain` with `--png` need `.venv/test/bin/heed`, which `make test`
installs. The exit code is 0 for success, 1 for a failure, 2 for a wrong argument or setting, and 130 after Ctrl-C.
Formats of data files are in [training](training.md).
"""


def render() -> str:
    """Return the page."""
    commands = list(_commands(typer.main.get_command(app), None, "heed"))
    leaves = [(name, command, context) for name, command, context in commands if not hasattr(command, "commands")]
    links = [(f"[`{name}`](#{_anchor(name)})", _first_line(command)) for name, command, _ in leaves]
    overview = table(("command", "purpose"), links)
    return "\n".join([_HEADER, overview, *(_section(*each) for each in leaves)])


def _commands(command: Any, parent: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield every command below, with its full name and a context for it."""
    context = command.context_class(command, parent=parent, info_name=name.split()[-1], terminal_width=1_000)
    yield name, command, context
    if hasattr(command, "commands"):
        for below in command.list_commands(context):
            yield from _commands(command.get_command(context, below), context, f"{name} {below}")


def _section(name: str, command: Any, context: Any) -> str:
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    lines = [f"## `{name}`\n", _cleaned(command.help or ""), "", "```text", usage, "```", ""]
    for (kind, panel), parameters in _by_panel(command.get_params(context)).items():
        records = filter(None, (parameter.get_help_record(context) for parameter in parameters))
        if panel:
            lines.append(f"{panel}:\n")
        lines.append(table((kind, "meaning"), [(f"`{shown}`", _cleaned(text)) for shown, text in records]))
    if command.epilog:
        lines.append(_example_fence(command.epilog))
    return "\n".join(lines)


def _by_panel(parameters: Iterable[Any]) -> dict[tuple[str, str], list[Any]]:
    """Group parameters by their kind and the panel of the help that shows them, without `--help`."""
    panels: dict[tuple[str, str], list[Any]] = {("argument", ""): [], ("option", ""): []}
    for parameter in parameters:
        if "--help" not in parameter.opts:
            key = (parameter.param_type_name, getattr(parameter, "rich_help_panel", None) or "")
            panels.setdefault(key, []).append(parameter)
    return {key: members for key, members in panels.items() if members}


def _example_fence(epilog: str) -> str:
    heading, *commands = epilog.split("\n\n")
    return "\n".join([f"{heading}\n", "```console", *commands, "```", ""])


def _first_line(command: Any) -> str:
    return _cleaned((command.help or "").strip().partition("\n\n")[0])


def _cleaned(text: str) -> str:
    """Return help for Markdown: paragraphs stay, other white space does not, and no angle bracket is taken for HTML."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return "\n\n".join(paragraphs).replace("<", "&lt;").replace("\x08", "").replace("\f", "")


def _anchor(name: str) -> str:
    return name.replace(" ", "-")
