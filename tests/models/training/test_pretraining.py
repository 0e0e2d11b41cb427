"""Pretraining on plain texts: an encoder learns, the measures show it, and the result is a base encoder."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from models.data.training_files import validation_texts
from models.data.user_files import DataError
from models.networks.base_encoder import BASE_FILES, BASE_WEIGHTS, check_base_encoder
from models.networks.encoder import load_base_encoder
from models.training.classification import CONFIGS, train_classifier
from models.training.pretraining import (
    REPORT,
    WORK,
    DomainReport,
    PretrainingConfig,
    TextSource,
    pretrain,
    read_pretraining_config,
    split_texts,
)
from models.training.trainer import CHECKPOINT, ConfigError, Trainer
from service.cli.main import app
from tests.models.conftest import CONFIG as CLASSIFICATION
from tests.support.tiny_bundle import PIECES, write_tokenizer
from tests.support.tiny_networks import tiny_config, tiny_encoder

pytestmark = pytest.mark.slow

CONFIG = tiny_config(
    PretrainingConfig,
    seed=5,
    epochs=8,
    reading=0,
    head_steps=15,
    masked=0.15,
    hidden=0.8,
    swapped=0.1,
    freeze_embeddings=True,
    checkpoint_every=4,
    texts=(
        TextSource("letters", "en", "MIT", "letters"),
        TextSource("more_letters", "en", "MIT", "letters", share=0.5),
        TextSource("words_zh", "zh", "MIT", "words"),
    ),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base encoder whose tokenizer has a token that hides others."""
    folder = tmp_path_factory.mktemp("base")
    tiny_encoder(1, len(PIECES) + 1, layers=2, spread=0.1).save_pretrained(folder)
    write_tokenizer(folder / "tokenizer.json")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"].append({**content["added_tokens"][0], "id": len(PIECES), "content": "<mask>"})
    content["model"]["vocab"].append(["<mask>", 0.0])
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


def write_texts(folder: Path, name: str, texts: Sequence[str]) -> None:
    with gzip.open(folder / f"{name}.txt.gz", "wt", encoding="utf-8") as lines:
        lines.writelines(f"{text}\n" for text in texts)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts whose tokens follow from the others: each repeats a character."""
    folder = tmp_path_factory.mktemp("texts")
    for name, alphabet in (
        ("letters", "ABCDEFGHKM"),
        ("more_letters", "NPQRSTUVWX"),
        ("words_zh", "股票上涨下跌公司利润"),
    ):
        write_texts(folder, name, [letter * length for letter in alphabet for length in range(4, 13)])
    return folder


@pytest.fixture(scope="module")
def pretrained(base: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[DomainReport]]:
    out = tmp_path_factory.mktemp("pretrained") / "base"
    return out, pretrain(CONFIG, str(base), texts, None, out)


def test_the_encoder_learns_in_every_domain(pretrained: tuple[Path, list[DomainReport]]) -> None:
    out, reports = pretrained
    assert [(report.domain, report.language, report.texts) for report in reports] == [
        ("letters", "en", 18),
        ("words", "zh", 9),
    ]
    for report in reports:
        assert report.tokens >= report.texts
        assert report.after.accuracy > max(0.5, report.before.accuracy)
        assert report.after.perplexity < report.before.perplexity / 1.5
    content = json.loads((out / REPORT).read_text())
    assert content["domains"] == [asdict(report) for report in reports]


def test_the_result_is_a_base_encoder_that_trains(
    base: Path, data: Path, pretrained: tuple[Path, list[DomainReport]], tmp_path: Path
) -> None:
    out, _ = pretrained
    check_base_encoder(str(out))
    assert {path.name for path in out.iterdir()} == {*BASE_FILES, "tokenizer_config.json", WORK, REPORT}
    before, after = load_file(base / BASE_WEIGHTS), load_file(out / BASE_WEIGHTS)
    assert before.keys() == after.keys()
    word = "embeddings.word_embeddings.weight"
    assert torch.equal(before[word], after[word])
    assert not torch.equal(before["encoder.layer.0.output.dense.weight"], after["encoder.layer.0.output.dense.weight"])
    train_classifier(replace(CLASSIFICATION, epochs=0.1), str(out), data, tmp_path)


def test_a_shallower_encoder_keeps_the_layers_that_are_named(base: Path, texts: Path, tmp_path: Path) -> None:
    pretrain(replace(CONFIG, epochs=1, layers=(1,)), str(base), texts, None, tmp_path)
    assert load_base_encoder(str(tmp_path)).config.num_hidden_layers == 1


def test_a_killed_pretraining_resumes_to_the_same_encoder_and_figures(
    base: Path,
    texts: Path,
    pretrained: tuple[Path, list[DomainReport]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train_step = Trainer.train_step

    def killed_step(self: Trainer, rows: list[object]) -> float:
        if self.step == 9 and self.out.name == WORK:
            raise KeyboardInterrupt
        return train_step(self, rows)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", killed_step)
        with pytest.raises(KeyboardInterrupt):
            pretrain(CONFIG, str(base), texts, None, tmp_path)
    assert (tmp_path / WORK / CHECKPOINT).exists()
    assert not (tmp_path / BASE_WEIGHTS).exists()
    resumed = pretrain(CONFIG, str(base), texts, None, tmp_path)
    out, reports = pretrained
    for one, other in zip(resumed, reports, strict=True):
        assert one.before.loss == pytest.approx(other.before.loss)
        assert one.after.loss == pytest.approx(other.after.loss)
    expected, weights = load_file(out / BASE_WEIGHTS), load_file(tmp_path / BASE_WEIGHTS)
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, msg=name)


def test_no_held_out_text_is_trained_on_nor_a_validation_text(tmp_path: Path) -> None:
    write_texts(tmp_path, "letters", [f"text number {number}" for number in range(40)])
    write_texts(tmp_path, "more_letters", [f"Text  NUMBER {number}!" for number in range(0, 40, 2)])
    write_texts(tmp_path, "words_zh", ["公司"])
    for folder in ("sets/news", "dialogues"):
        (tmp_path / folder).mkdir(parents=True)
    with gzip.open(tmp_path / "sets/news/validation.jsonl.gz", "wt", encoding="utf-8") as lines:
        lines.write('{"text": "text number 7", "label": "up"}\n')
    with gzip.open(tmp_path / "dialogues/validation.jsonl.gz", "wt", encoding="utf-8") as lines:
        lines.write('{"turns": []}\n')
    training, held_out = split_texts(CONFIG, tmp_path, tmp_path)
    assert {name: len(rows) for name, rows in held_out.items()} == {"letters": 3, "more_letters": 2, "words_zh": 0}
    numbers = {name: {text.rstrip("!").split()[-1] for text in rows} for name, rows in training.items()}
    unseen = {text.rstrip("!").split()[-1] for rows in held_out.values() for text in rows}
    assert not unseen & (numbers["letters"] | numbers["more_letters"])
    assert "7" not in numbers["letters"] | unseen
    assert len(numbers["letters"] | unseen) == 39
    with gzip.open(tmp_path / "dialogues/validation.jsonl.gz", "wt", encoding="utf-8") as lines:
        lines.write("[]\n")
    with pytest.raises(DataError, match="line 1"):
        list(validation_texts(tmp_path))


def test_a_tokenizer_that_hides_nothing_and_a_file_without_texts_are_refused(
    base: Path, texts: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    tiny_encoder(1, len(PIECES), layers=1).save_pretrained(bare)
    write_tokenizer(bare / "tokenizer.json")
    with pytest.raises(ValueError, match="no token <mask>"):
        pretrain(CONFIG, str(bare), texts, None, tmp_path / "out")
    for source in CONFIG.texts:
        write_texts(tmp_path, source.name, [])
    with pytest.raises(ConfigError, match="too few"):
        pretrain(CONFIG, str(base), tmp_path, None, tmp_path / "out")


def test_the_shipped_configuration_is_valid_and_a_missing_field_is_named(tmp_path: Path) -> None:
    shipped = read_pretraining_config(CONFIGS / "pretraining.toml")
    assert {source.language for source in shipped.texts} == {"en", "zh"}
    (tmp_path / "config.toml").write_text("seed = 1\ntexts = []\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="head_steps"):
        read_pretraining_config(tmp_path / "config.toml")


def test_the_command_prints_a_row_for_each_domain(base: Path, texts: Path, tmp_path: Path) -> None:
    fields = {**asdict(replace(CONFIG, epochs=0.2, head_steps=0)), "texts": None}
    lines = [f"{name} = {json.dumps(value)}" for name, value in fields.items() if value is not None]
    for source in CONFIG.texts:
        lines += ["[[texts]]", *(f"{name} = {json.dumps(value)}" for name, value in asdict(source).items())]
    (tmp_path / "config.toml").write_text("\n".join(lines), encoding="utf-8")
    options = ("--base", base, "--texts", texts, "--out", tmp_path / "out", "--config", tmp_path / "config.toml")
    result = CliRunner().invoke(app, ["pretrain", *map(str, options)])
    assert result.exit_code == 0, result.output
    assert "| letters | en | 18 |" in result.output
    assert "| words | zh | 9 |" in result.output
    (texts_missing := tmp_path / "none").mkdir()
    result = CliRunner().invoke(app, ["pretrain", *map(str, options), "--texts", str(texts_missing)])
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert "letters.txt.gz" in result.output
