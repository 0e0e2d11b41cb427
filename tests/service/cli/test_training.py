"""Mistakes in commands that train and export are named in one line, before a model is loaded."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.bundle import TOKENIZER, load_bundle
from models.data.training_files import MAX_NAMED_FILES
from models.export.base import export_base
from models.training.trainer import RUN, WEIGHTS
from service.cli.main import app
from tests.support.tiny_bundle import tiny_bundle

CONFIG = """
task = "sentiment"
seed = 1
epochs = 1
batch_tokens = 600
batch_examples = 16
max_tokens = 64
encoder_rate = 1e-3
head_rate = 1e-2
layer_decay = 0.9
weight_decay = 0.01
warmup_steps = 10
anneal = 0.5
freeze_embeddings = false
validate_every = 1000
validation_rows = 20
checkpoint_every = 5
augment = 0.2
[[datasets]]
name = "news"
language = "en"
labels = ["negative", "neutral", "positive"]
licence = "MIT"
"""

PIP = f"{sys.executable} -m pip install"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    export_base(load_bundle(tiny_bundle(folder)), folder / "encoder")
    return folder / "encoder"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text(CONFIG, encoding="utf-8")
    return tmp_path / "config.toml"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def refused(*arguments: object) -> tuple[int, str]:
    """Return the exit code and the only line that a command prints."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.output.count("\n") == 1, result.output
    assert result.output.startswith("heed: ")
    return result.exit_code, result.output


def write_rows(data: Path, *lines: str) -> None:
    (data / "news").mkdir()
    for split in ("train", "validation"):
        with gzip.open(data / "news" / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sentiment", "--label-set", "mine"], "--label-set is for intents"),
        (["intent", "--label-set", "mine", "--full"], "--sets is needed"),
        (["sentiment", "--base", "encoder"], "--base and --out are needed"),
        (["recommend", "--base", "encoder", "--out", "run"], "--texts is needed"),
    ],
)
def test_a_missing_option_is_named(data: Path, arguments: list[str], message: str) -> None:
    code, line = refused("train", *arguments, "--data", data)
    assert code == 2
    assert message in line


@pytest.mark.parametrize(
    "command",
    [
        ["train", "sentiment", "--base", "encoder", "--out", "run"],
        ["distill", "intent", "--teacher", ".", "--out", "run"],
        ["answers", ".", "--out", "file"],
        ["pretrain", "--base", "encoder", "--texts", ".", "--out", "base"],
    ],
)
def test_training_without_torch_is_refused_with_the_remedy(
    data: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    line = f"heed: training needs torch, which is missing; run: {PIP} torch==2.13.0\n"
    assert refused(*command, "--data", data) == (1, line)
    monkeypatch.setitem(sys.modules, "transformers", None)
    line = refused(*command, "--data", data)[1]
    assert line.startswith("heed: training needs torch and transformers, which are missing; run: ")
    assert line.endswith(f"{PIP} torch==2.13.0 transformers==5.23.0\n")


def test_tracking_without_its_package_and_of_a_head_is_refused(
    base: Path, data: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    line = f"heed: --track wandb needs wandb, which is missing; run: {PIP} wandb==0.31.0\n"
    shared = ("--data", data, "--out", tmp_path / "run", "--track", "wandb")
    assert refused("train", "sentiment", "--base", base, "--config", config, *shared) == (1, line)
    assert refused("distill", "intent", "--teacher", base, *shared) == (1, line)
    assert refused("pretrain", "--base", base, "--texts", data, *shared) == (1, line)
    assert "no steps" in refused("train", "intent", "--label-set", "mine", *shared)[1]


def test_an_export_and_a_base_encoder_without_torch_are_refused_with_the_remedy(
    data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    remedy = f"needs torch, which is missing; run: {PIP} torch==2.13.0\n"
    assert refused("export", data, "--data", data, "--out", tmp_path / "out") == (1, f"heed: export {remedy}")
    assert refused("base", data, "--out", tmp_path / "out") == (1, f"heed: a base encoder {remedy}")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnx", None)
    line = refused("export", data, "--data", data, "--out", tmp_path / "out")[1]
    assert line.startswith("heed: export needs onnx, which is missing; run: ")
    assert line.endswith(f"{PIP} onnx==1.23.2\n")


@pytest.mark.parametrize(
    ("name", "message"),
    [("none", "there is no base encoder"), ("data", "it lacks config.json, model.safetensors, tokenizer.json")],
)
def test_a_wrong_base_encoder_is_named(data: Path, config: Path, tmp_path: Path, name: str, message: str) -> None:
    out = tmp_path / "run"
    code, line = refused(
        *("train", "sentiment", "--config", config, "--base", tmp_path / name, "--data", data, "--out", out)
    )
    assert code == 2
    assert message in line
    assert not out.exists()


def test_missing_training_files_are_named(base: Path, data: Path, config: Path, tmp_path: Path) -> None:
    shared = ("--base", base, "--data", data, "--out", tmp_path / "run")
    code, line = refused("train", "sentiment", "--config", config, *shared)
    assert code == 2
    assert str(data / "news" / "validation.jsonl.gz") in line
    assert "more" not in line
    code, line = refused("train", "recommend", *shared, "--texts", data)
    assert str(data / "online_retail" / "interactions.csv.gz") in line
    assert line.count(str(data)) == MAX_NAMED_FILES
    assert line.endswith("more\n")
    assert str(data / "banking77") in refused("train", "intent", *shared)[1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": "up", "label": "great"}', "label 'great' is not one of"),
        ('{"text": "up"}', "KeyError('label')"),
        ("up", "line 2: no object with a text and a label"),
        ('["up"]', "line 2: no object with a text and a label"),
    ],
)
def test_a_faulty_row_is_named_with_its_line(
    base: Path, data: Path, config: Path, tmp_path: Path, row: str, message: str
) -> None:
    write_rows(data, json.dumps({"text": "up", "label": "positive"}), row)
    code, line = refused(
        *("train", "sentiment", "--config", config, "--base", base, "--data", data, "--out", tmp_path / "run")
    )
    assert code == 2
    assert "validation.jsonl.gz line 2" in line
    assert message in line


def test_a_broken_file_and_a_broken_configuration_are_refused(
    base: Path, data: Path, config: Path, tmp_path: Path
) -> None:
    write_rows(data, json.dumps({"text": "up", "label": "positive"}))
    command = ("train", "sentiment", "--config", config, "--base", base, "--data", data, "--out", tmp_path / "run")
    (data / "news" / "train.jsonl.gz").write_bytes(b"no gzip")
    assert refused(*command)[0] == 2
    whole = (data / "news" / "validation.jsonl.gz").read_bytes()
    (data / "news" / "train.jsonl.gz").write_bytes(whole[:-10])
    assert refused(*command)[0] == 2
    config.write_text("seed: 1", encoding="utf-8")
    assert refused(*command)[0] == 2


@pytest.mark.parametrize("missing", [RUN, WEIGHTS, TOKENIZER])
def test_an_unfinished_run_is_neither_exported_nor_a_teacher(
    base: Path, data: Path, tmp_path: Path, missing: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in {RUN, WEIGHTS, TOKENIZER} - {missing}:
        (run / name).write_text(json.dumps({"base": str(base)}), encoding="utf-8")
    message = f"{run} is no finished training run: it lacks {missing}"
    assert refused("export", run, "--data", data, "--out", tmp_path / "out") == (1, f"heed: {message}\n")
    code, line = refused("distill", "intent", "--teacher", run, "--data", data, "--out", tmp_path / "student")
    assert (code, line) == (2, f"heed: {message}\n")
    code, line = refused("answers", run, "--data", data, "--out", tmp_path / "answers")
    assert (code, line) == (2, f"heed: {message}\n")


def test_a_run_whose_base_encoder_is_gone_is_not_exported(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in (RUN, WEIGHTS, TOKENIZER):
        (run / name).write_text(json.dumps({"base": str(tmp_path / "gone")}), encoding="utf-8")
    code, line = refused("export", run, "--data", data, "--out", tmp_path / "out")
    assert code == 1
    assert f"{run} needs the base encoder that it was trained from" in line


def test_a_base_encoder_needs_a_bundle_and_a_new_folder(base: Path, data: Path, tmp_path: Path) -> None:
    assert "no bundle at" in refused("base", data, "--out", tmp_path / "out")[1]
    bundle = tiny_bundle(tmp_path)
    code, line = refused("base", bundle, "--out", base)
    assert code == 2
    assert "exists already" in line
