"""The `heed` command: reads what is given, refuses what cannot work with one line, and calls the part that does it.

Imports inside the commands: each then needs only what it uses, and serving needs no torch.
"""

from __future__ import annotations

import typer

from service.cli.catalogue import catalogue
from service.cli.explain import explain, explain_intent
from service.cli.explain_recommend import explain_recommend
from service.cli.faithfulness import faithfulness
from service.cli.heads import heads, replies
from service.cli.serve import serve, tune
from service.cli.training import distill, evaluate, export, train

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(catalogue, name="catalogue")
app.add_typer(heads, name="heads")
app.add_typer(replies, name="replies")
app.add_typer(explain, name="explain")
for command in (serve, tune, train, distill, export, evaluate, faithfulness):
    app.command()(command)
explain.command("intent")(explain_intent)
explain.command("recommend")(explain_recommend)


@app.callback()
def heed() -> None:
    """Sentiment, intents and replies, English and Chinese."""


def main() -> None:
    app()


if __name__ == "__main__":
    main()
