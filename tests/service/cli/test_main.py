"""`heed` itself: its version, and help that is complete, ordered and short."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from statistics import median
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from service.cli.main import app
from tests.docs.markdown import count_words, split_sentences

MAX_SENTENCE_WORDS = 30


def leaves(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    for below, child in getattr(command, "commands", {}).items():
        yield from leaves(child, f"{name} {below}".strip())
    if not hasattr(command, "commands"):
        yield name, command


COMMANDS = dict(leaves(typer.main.get_command(app)))


def help_of(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, "--help"])
    assert result.exit_code == 0
    return result.output


def test_the_version_is_that_of_the_installed_package() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"heed {version('heed')}\n")


def test_commands_are_listed_in_panels_and_in_a_sensible_order() -> None:
    lines = help_of().splitlines()
    panels = [line.strip("╭╮─ ") for line in lines if line.startswith("╭")]
    assert panels == [
        "Options",
        "Serve",
        "Your own intents, replies and items",
        "Explain",
        "Train and measure models",
    ]
    names = [found[1] for line in lines if (found := re.match(r"│ ([a-z]+) ", line))]
    assert names == [
        *("serve", "tune"),
        *("heads", "replies", "catalogue"),
        *("explain", "faithfulness"),
        *("train", "answers", "distill", "export", "evaluate", "base", "pretrain"),
    ]
    assert "recommendations" in help_of()


def test_options_of_a_training_are_grouped_by_task() -> None:
    panels = [line.strip("╭╮─ ") for line in help_of("train").splitlines() if line.startswith("╭")]
    assert panels == [
        "Arguments",
        "Options",
        "Intents of your own (heed train intent --label-set)",
        "Recommendation",
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_it_accepts(name: str) -> None:
    heading, *examples = COMMANDS[name].epilog.split("\n\n")
    assert heading == ("Example:" if len(examples) == 1 else "Examples:")
    for example in examples:
        assert example.startswith((f"heed {name}", 'heed explain "'))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_in_short_sentences(name: str) -> None:
    texts = [COMMANDS[name].help, *(parameter.help or "" for parameter in COMMANDS[name].params)]
    sentences = [sentence for text in texts for sentence in split_sentences(" ".join(text.split()))]
    assert max(map(count_words, sentences)) <= MAX_SENTENCE_WORDS
    assert median(map(count_words, sentences)) <= 16


@pytest.mark.parametrize(
    ("name", "format_names"),
    [
        ("train", ["train.jsonl.gz", '{"text", "label"}', '"turns"', "interactions.csv.gz", ".txt.gz", "TOML"]),
        ("distill", [".txt.gz", "docs/training.md"]),
        ("export", ["docs/training.md"]),
        ("evaluate files", ["docs/training.md"]),
        ("base", ["config.json", "model.safetensors", "tokenizer.json"]),
        ("heads add", [".head.safetensors"]),
        ("replies add", [".jsonl", "text file"]),
        ("catalogue add", [".jsonl", "item_id", "attributes"]),
        ("explain report", [".jsonl", '"entity"']),
        ("explain recommend", ["JSON", "/v1/explain/recommend"]),
    ],
)
def test_help_names_the_formats_of_files(name: str, format_names: list[str]) -> None:
    command = COMMANDS[name]
    text = " ".join([command.help, *(parameter.help or "" for parameter in command.params)])
    assert not [wanted for wanted in format_names if wanted not in " ".join(text.split())]


@pytest.mark.parametrize(
    ("module", "requirement"), [("onnx.helper", "onnx==1.23.2"), ("onnxruntime", "onnxruntime==1.32.0")]
)
def test_a_package_that_turns_out_to_be_missing_ends_in_one_line(
    module: str, requirement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cli.serve.read_settings", partial(import_missing, module))
    result = CliRunner().invoke(app, ["serve"])
    package = module.partition(".")[0]
    remedy = f"run: {sys.executable} -m pip install {requirement}"
    assert (result.exit_code, result.output) == (
        1,
        f"heed: this command needs {package}, which is missing; {remedy}\n",
    )


def test_a_missing_module_of_heed_itself_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cli.serve.read_settings", partial(import_missing, "models.gone"))
    assert isinstance(CliRunner().invoke(app, ["serve"]).exception, ModuleNotFoundError)


def import_missing(module: str, **_: object) -> None:
    raise ModuleNotFoundError(f"No module named {module!r}", name=module)
