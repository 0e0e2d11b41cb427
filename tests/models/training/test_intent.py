"""From dialogues to a bundle: a tiny encoder that learns tiny data sets, its student, the export and the figures."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from models.bundle import TOKENIZER, load_bundle, save_bundle
from models.evaluation.intent import evaluate_intents, intents_table
from models.export.card_intent import describe_heads, update_heads
from models.export.intent import export_intents
from models.export.parity import ParityError
from models.networks.intent import ReplyRow
from models.prediction.intent_head import HEADS_FOLDER, SUFFIX, load_bundle_heads, load_head, predict_intents, save_head
from models.prediction.reply_ranker import RANKER, load_ranker
from models.runtime.offline import open_text_encoder
from models.text.tokenizer import Tokenizer, Turn
from models.training.intent import distill_intents, load_intent_run, train_intents
from models.training.intent_batches import (
    BatchPlanner,
    IntentConfig,
    IntentDistillationConfig,
    load_training_data,
    reply_candidates,
)
from models.training.trainer import ConfigError
from service.cli.main import app
from tests.support.tiny_dialogues import CONFIG, write_dialogue_sets

pytestmark = pytest.mark.slow

STUDENT = IntentDistillationConfig(layers=(1,), labels_weight=0.5, states_weight=1.0, direction_weight=1.0)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dialogue_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def teacher(base: Path, sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_intents(CONFIG, str(base), sets, tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def student(teacher: Path, sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distill_intents(CONFIG, STUDENT, teacher, sets, tmp_path_factory.mktemp("student"))


def test_a_student_is_exported_as_a_bundle_with_intents_context_and_replies(
    student: Path, sets: Path, tmp_path: Path
) -> None:
    logged: list[str] = []
    bundle = export_intents(student, sets, tmp_path / "intent", "1.0.0", log=logged.append)
    assert load_bundle(bundle.path).digest == bundle.digest
    heads = load_bundle_heads(bundle.path, bundle.encoder_digest)
    assert heads["wishes"].labels == ("find", "pay", "stop")
    ranker, reader = load_ranker(bundle.path / RANKER), open_text_encoder(bundle)
    measured = evaluate_intents(heads, ranker, reader, sets, CONFIG.label_sets, CONFIG.reply_sets)
    wishes, talk = measured.intents
    assert wishes.accuracy > 0.9
    assert wishes.auroc is not None
    assert wishes.auroc > 0.8
    assert talk.auroc is None
    context = measured.context[0]
    assert context.short_macro_f1 > context.short_alone + 0.1  # "it" alone is ambiguous
    assert [report.part for report in measured.context] == ["all", "bank", "shop"]
    (replies,) = measured.replies
    assert replies.first_offered > 0.9
    assert replies.templates == 3
    figures = {(metric.dataset, metric.name): metric.value for metric in bundle.metrics}
    assert figures["wishes", "accuracy"] == pytest.approx(wishes.accuracy, abs=1e-6)
    card = (bundle.path / "CARD.md").read_text(encoding="utf-8")
    assert intents_table(measured) in card
    assert "of 1 layers, distilled from one of twelve" in card
    assert any("mean cosine" in line for line in logged)


def test_the_heads_of_a_bundle_are_refitted_on_its_encoder(
    student: Path, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = export_intents(student, sets, tmp_path / "intent", "1.0.0", log=lambda line: None)
    head = old.path / HEADS_FOLDER / f"wishes{SUFFIX}"
    original = head.read_bytes()
    save_head(replace(load_head(head, old.encoder_digest), temperature=9.0), head)
    card_file = old.path / "CARD.md"
    old_card = card_file.read_text(encoding="utf-8")
    assert describe_heads() in old_card
    card_file.write_text(old_card.replace(describe_heads(), "- Heads are\n  something older.\n"), encoding="utf-8")
    save_bundle(old.path, old)
    monkeypatch.setattr("models.export.intent.load_shipped_sets", lambda: (CONFIG.label_sets, CONFIG.reply_sets))
    heed("export", old.path, "--data", sets, "--out", old.path, "--version", "1.1.0")
    new = load_bundle(old.path)
    assert (new.version, new.encoder_digest, new.metrics) == ("1.1.0", old.encoder_digest, old.metrics)
    assert head.read_bytes() == original
    card = (new.path / "CARD.md").read_text(encoding="utf-8")
    assert card.startswith("# intent 1.1.0\n")
    heads, ranker = load_bundle_heads(new.path, new.encoder_digest), load_ranker(new.path / RANKER)
    measured = evaluate_intents(heads, ranker, open_text_encoder(new), sets, CONFIG.label_sets, CONFIG.reply_sets)
    assert intents_table(measured) in card
    assert card == old_card.replace("# intent 1.0.0\n", "# intent 1.1.0\n")
    modified = (new.path / HEADS_FOLDER / f"talk{SUFFIX}").stat().st_mtime_ns
    again = ("export", new.path, "--data", sets, "--out", new.path, "--version", "1.1.0")
    heed(*again, "--head", "wishes")
    assert load_bundle(new.path).digest == new.digest
    assert (new.path / HEADS_FOLDER / f"talk{SUFFIX}").stat().st_mtime_ns == modified
    refused = CliRunner().invoke(app, [str(argument) for argument in (*again, "--head", "moods")])
    assert (refused.exit_code, "its heads are wishes, talk, not moods" in refused.output) == (1, True)
    with pytest.raises(ValueError, match="0 rows of figures for wishes"):
        update_heads("# intent\n", measured)


def test_user_intents_are_trained_with_the_encoder_and_served_by_the_bundle(
    base: Path, sets: Path, tmp_path: Path
) -> None:
    """Run `heed train intent --full` and export the result."""
    file, config, run = tmp_path / "my.jsonl", tmp_path / "tiny.toml", tmp_path / "run"
    rng = random.Random(6)
    rows = [
        {"text": f"{''.join(rng.choices('BCDEGHKMPQ', k=4))} {word}", "label": word}
        for _ in range(20)
        for word in ("open", "shut")
    ]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config.write_text(as_toml(replace(CONFIG, epochs=0.1), STUDENT), encoding="utf-8")
    command = ("train", "intent", "--label-set", "mine", "--data", file, "--full", "--sets", sets)
    output = heed(*command, "--base", base, "--out", run, "--config", config)
    assert f"heed export {run} --data {sets}" in " ".join(output.split())
    heed("export", run, "--data", sets, "--out", tmp_path / "intent")
    bundle = load_bundle(tmp_path / "intent")
    mine = load_bundle_heads(bundle.path, bundle.encoder_digest)["mine"]
    assert mine.labels == ("open", "shut")
    vectors = open_text_encoder(bundle).encode_dialogues(
        [(Turn("customer", text),) for text in ("BCDE open", "KKMP shut")]
    )
    assert predict_intents(mine, vectors).confidences.argmax(axis=1).tolist() == [0, 1]


def heed(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def as_toml(config: IntentConfig, student: IntentDistillationConfig) -> str:
    def lines(row: dict[str, Any]) -> list[str]:
        return [f"{name} = {json.dumps(value)}" for name, value in row.items() if value is not None]

    content = asdict(config)
    tables = {name: content.pop(name) for name in ("label_sets", "reply_sets")}
    text = [*lines(content), "[student]", *lines(asdict(student))]
    for name, rows in tables.items():
        for row in rows:
            text += [f"[[{name}]]", *lines(row)]
    return "\n".join(text)


def test_a_graph_without_parity_is_refused_and_nothing_is_written(
    student: Path, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.export.intent.MIN_COSINE", 1.01)
    with pytest.raises(ParityError, match="mean cosine"):
        export_intents(student, sets, tmp_path / "intent", "1.0.0", log=lambda line: None)
    assert not list(tmp_path.iterdir())


def test_a_student_of_other_label_sets_is_refused(teacher: Path, sets: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="other intents"):
        distill_intents(replace(CONFIG, label_sets=CONFIG.label_sets[:1]), STUDENT, teacher, sets, tmp_path)


def test_the_folder_records_the_run(teacher: Path, student: Path) -> None:
    assert load_intent_run(teacher).layers is None
    run = load_intent_run(student)
    assert run.layers == (1,)
    assert run.config == CONFIG


def test_each_reply_of_a_batch_is_a_single_candidate(teacher: Path, sets: Path) -> None:
    planner = BatchPlanner(CONFIG, Tokenizer(teacher / TOKENIZER, 64), load_training_data(CONFIG, sets))
    batch = next(batch for batch in planner.batches() if isinstance(batch[0], ReplyRow))
    texts, correct = reply_candidates(batch)
    keys = [tokens.ids.tobytes() for tokens in texts]
    assert len(set(keys)) == len(keys)
    assert [keys[index] for index in correct] == [row.reply.ids.tobytes() for row in batch]
