"""The `heed` command: checks arguments, refuses what cannot work with one line, and calls the room that does it.

Commands import what they need in their bodies. Serving therefore needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from models.installation import EXTRAS, MissingPackageError, requirements_of
from service.cli.catalogue import catalogue
from service.cli.command import examples, fail
from service.cli.distillation import answers, distill
from service.cli.evaluation import evaluate, faithfulness
from service.cli.explain import explain, explain_intent, explain_report
from service.cli.explain_recommend import explain_recommend
from service.cli.heads import heads, replies
from service.cli.pretraining import pretrain
from service.cli.serve import serve, tune
from service.cli.training import base, export, train
from service.telemetry import logs

_PANELS: dict[str, dict[str, Callable[..., None] | typer.Typer]] = {
    "Serve": {"serve": serve, "tune": tune},
    "Your own intents, replies and items": {"heads": heads, "replies": replies, "catalogue": catalogue},
    "Explain": {"explain": explain, "faithfulness": faithfulness},
    "Train and measure models": {
        "train": train,
        "answers": answers,
        "distill": distill,
        "export": export,
        "evaluate": evaluate,
        "base": base,
        "pretrain": pretrain,
    },
}
"""The commands by the panel of `heed --help` that shows them, in order."""

_EXAMPLES = {
    "serve": ("heed serve --port 8080 --replicas 2",),
    "tune": ("heed tune > heed.env", "heed tune --seconds 1 --cores 4"),
    "faithfulness": ("heed faithfulness intent --data DATA --rows 40 --out runs/faithfulness",),
    "train": (
        "heed train sentiment --base BASE --data DATA --out runs/sentiment",
        "heed train intent --label-set my-team --data my.jsonl",
        "heed train recommend --base BASE --data DATA --texts TEXTS --out runs/recommend",
    ),
    "answers": ("heed answers runs/sentiment --data DATA --texts TEXTS --out answers/sentiment.safetensors",),
    "distill": (
        "heed distill sentiment --teacher runs/sentiment --data DATA --texts TEXTS --out runs/student",
        "heed distill intent --teacher runs/intent --data DATA --out runs/intent-student",
    ),
    "export": (
        "heed export runs/student --data DATA --out models/bundles/mine --teacher models/bundles/my-teacher",
        "heed export models/bundles/intent --data DATA --out models/bundles/my-intent --head dstc11",
    ),
    "base": ("heed base models/bundles/sentiment --out BASE",),
    "pretrain": ("heed pretrain --base BASE --texts TEXTS --data DATA --out BASE2",),
}


class _OrderedCommands(TyperGroup):
    """A group that lists its commands in the order of the panels. Typer would list all groups last.

    A package that is missing after all, for a command that did not ask for it, ends in one line as well.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for commands in _PANELS.values() for name in commands]

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MissingPackageError as error:
            fail(error)
        except ModuleNotFoundError as error:
            module = (error.name or "").partition(".")[0]
            extra = next((extra for extra in EXTRAS if module in requirements_of(extra)), None)
            if extra is None:
                raise
            fail(MissingPackageError("this command", [module], extra))


app = typer.Typer(
    cls=_OrderedCommands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # paragraphs of docstrings are wrapped anew
)
for _panel, _commands in _PANELS.items():
    for _name, _command in _commands.items():
        if isinstance(_command, typer.Typer):
            app.add_typer(_command, name=_name, rich_help_panel=_panel)
        else:
            app.command(_name, rich_help_panel=_panel, epilog=examples(*_EXAMPLES[_name]))(_command)
explain.command("intent", epilog=examples('heed explain intent "my card was declined" --label-set banking77'))(
    explain_intent
)
explain.command(
    "recommend", epilog=examples("heed explain recommend user.json", "heed explain recommend user.json --target 22423")
)(explain_recommend)
explain.command(
    "report",
    epilog=examples(
        "heed explain report --data texts.jsonl --out runs/report",
        "heed explain report --data my.jsonl --out runs/report --label-set banking77",
    ),
)(explain_report)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"heed {version('heed')}")
        raise typer.Exit


@app.callback()
def heed(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Sentiment, intents, replies and recommendations in English and Chinese: serve, explain and train the models."""


def main() -> None:
    logs.configure("heed", "warning")  # to standard error, because standard output is for results
    app()


if __name__ == "__main__":
    main()
