"""From dialogues to a bundle: a tiny encoder that learns tiny sets, its student, the export and the figures."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from models.bundle import TOKENIZER, load_bundle, save_bundle
from models.data.dialogues import (
    SHARED_INTENTS,
    LabelSet,
    ReplySet,
    all_templates,
    fill_template,
    read_exchanges,
    read_utterances,
    remove_held_out,
)
from models.evaluation.intent import evaluate_intents, intents_table
from models.export.card_intent import describe_heads, update_heads
from models.export.intent import export_intents
from models.export.parity import ParityError
from models.networks.intent import OUT_OF_SCOPE, ReplyRow, margin_loss
from models.prediction.intent_head import HEADS, SUFFIX, load_bundle_heads, load_head, predict_intents, save_head
from models.prediction.reply_ranker import RANKER, load_ranker
from models.runtime.offline import open_text_encoder
from models.text.tokenizer import Tokenizer, Turn
from models.training.intent import distill_intents, load_intent_run, train_intents
from models.training.intent_batches import (
    BatchPlanner,
    IntentConfig,
    IntentDistillation,
    add_user_examples,
    load_training_data,
    read_intent_config,
    reply_candidates,
)
from models.training.trainer import ConfigError
from service.cli.main import app

WORDS = {"pay": "pay it", "stop": "stop it", "find": "find it"}
CONFIG = IntentConfig(
    seed=3,
    epochs=8,
    batch_tokens=600,
    batch_examples=16,
    max_tokens=64,
    encoder_rate=3e-3,
    head_rate=1e-2,
    layer_decay=1.0,
    weight_decay=0.01,
    warmup_steps=10,
    anneal=0.5,
    freeze_embeddings=False,
    validate_every=1000,
    validation_rows=20,
    checkpoint_every=1000,
    unrelated=0.1,
    compiled=False,
    label_sets=(
        LabelSet("wishes", "wishes", "texts", "en", "MIT", outside="oos"),
        LabelSet("talk", "talk", "multidogo", "en", "MIT"),
    ),
    reply_sets=(ReplySet("star", "star", "star", "en", "MIT"),),
)
STUDENT = IntentDistillation(layers=(1,), labels_weight=0.5, states_weight=1.0, direction_weight=1.0)


def write(path: Path, rows: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    chance = random.Random(4)

    def name() -> str:
        return "".join(chance.choices("BCDEGHKMPQ", k=4))

    for part, count in (("train", 90), ("validation", 45)):
        wishes = [
            {"text": f"{name()} {word}", "label": label} for label, word in WORDS.items() for _ in range(count // 3)
        ]
        strange = [{"text": f"{name()} {name()} {name()}", "label": "oos"} for _ in range(count // 9)]
        write(folder / "wishes" / f"{part}.jsonl.gz", [*wishes, *strange])
        # What "it" is, only the turn before tells.
        talk = [
            {
                "domain": domain,
                "turns": [
                    {"speaker": "customer", "text": f"{name()} {word}", "intents": [intent]},
                    {"speaker": "customer", "text": "it", "intents": [f"again{intent}"]},
                    {"speaker": "customer", "text": "", "intents": ["contentonly"]},
                    {"speaker": "customer", "text": f"{name()}", "intents": ["contentonly", "thankyou"]},
                ],
            }
            for domain, intent, word in (("bank", "pay", "pay it"), ("shop", "stop", "stop it"))
            for _ in range(count // 3)
        ]
        write(folder / "talk" / f"{part}.jsonl.gz", talk)
        star = [
            {
                "tasks": ["shop"],
                "turns": [
                    {"speaker": "customer", "text": f"{name()} {word}"},
                    {"speaker": "agent", "text": said, "action": action, "options": ["a_pay", "a_stop", "gone"]},
                    {"speaker": "agent", "text": "hm"},
                ],
            }
            for word, said, action in (("pay it", "I pay it", "a_pay"), ("stop it", "I stop it", "a_stop"))
            for _ in range(count // 3)
        ]
        write(folder / "star" / f"{part}.jsonl.gz", star)
    templates = {"shop": {"a_pay": "I pay {amount:s} now", "a_stop": "I stop it"}, "other": {"a_pay": "never"}}
    (folder / "star" / "response_templates.json").write_text(json.dumps(templates), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def teacher(base: Path, sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_intents(CONFIG, str(base), sets, tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def student(teacher: Path, sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distill_intents(CONFIG, STUDENT, teacher, sets, tmp_path_factory.mktemp("student"))


def test_a_student_becomes_a_bundle_that_reads_intents_context_and_replies(
    student: Path, sets: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    bundle = export_intents(student, sets, tmp_path / "intent", "1.0.0", log=said.append)
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
    whole = measured.context[0]
    assert whole.short_macro_f1 > whole.short_alone + 0.1  # "it" alone tells nothing
    assert [one.part for one in measured.context] == ["all", "bank", "shop"]
    (replies,) = measured.replies
    assert replies.first_offered > 0.9
    assert replies.templates == 3
    figures = {(one.dataset, one.name): one.value for one in bundle.metrics}
    assert figures["wishes", "accuracy"] == pytest.approx(wishes.accuracy, abs=1e-6)
    card = (bundle.path / "CARD.md").read_text(encoding="utf-8")
    assert intents_table(measured) in card
    assert "of 1 layers, distilled from one of twelve" in card
    assert any("mean cosine" in line for line in said)


def test_a_bundles_own_heads_are_made_anew_on_the_encoder_it_has(
    student: Path, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = export_intents(student, sets, tmp_path / "intent", "1.0.0", log=lambda line: None)
    head = old.path / HEADS / f"wishes{SUFFIX}"
    made = head.read_bytes()
    save_head(replace(load_head(head, old.encoder_digest), temperature=9.0), head)
    aged = old.path / "CARD.md"
    said = aged.read_text(encoding="utf-8")
    assert describe_heads() in said
    aged.write_text(said.replace(describe_heads(), "- Heads are\n  something older.\n"), encoding="utf-8")
    save_bundle(old.path, old)
    monkeypatch.setattr("models.export.intent.shipped_sets", lambda: (CONFIG.label_sets, CONFIG.reply_sets))
    heed("export", old.path, "--data", sets, "--out", old.path, "--version", "1.1.0")
    new = load_bundle(old.path)
    assert (new.version, new.encoder_digest, new.metrics) == ("1.1.0", old.encoder_digest, old.metrics)
    assert head.read_bytes() == made
    card = (new.path / "CARD.md").read_text(encoding="utf-8")
    assert card.startswith("# intent 1.1.0\n")
    heads, ranker = load_bundle_heads(new.path, new.encoder_digest), load_ranker(new.path / RANKER)
    measured = evaluate_intents(heads, ranker, open_text_encoder(new), sets, CONFIG.label_sets, CONFIG.reply_sets)
    assert intents_table(measured) in card
    assert card == said.replace("# intent 1.0.0\n", "# intent 1.1.0\n")
    talk = (new.path / HEADS / f"talk{SUFFIX}").stat().st_mtime_ns
    again = ("export", new.path, "--data", sets, "--out", new.path, "--version", "1.1.0")
    heed(*again, "--head", "wishes")
    assert load_bundle(new.path).digest == new.digest
    assert (new.path / HEADS / f"talk{SUFFIX}").stat().st_mtime_ns == talk
    refused = CliRunner().invoke(app, [str(one) for one in (*again, "--head", "moods")])
    assert (refused.exit_code, "its heads are wishes, talk, not moods" in refused.output) == (1, True)
    with pytest.raises(ValueError, match="0 rows of figures for wishes"):
        update_heads("# intent\n", measured)


def test_intents_of_ones_own_are_learned_with_the_encoder_and_answered_by_the_bundle(
    base: Path, sets: Path, tmp_path: Path
) -> None:
    """`heed train intent --full`, and the export after it."""
    file, config, run = tmp_path / "my.jsonl", tmp_path / "tiny.toml", tmp_path / "run"
    chance = random.Random(6)
    rows = [
        {"text": f"{''.join(chance.choices('BCDEGHKMPQ', k=4))} {word}", "label": word}
        for _ in range(20)
        for word in ("open", "shut")
    ]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config.write_text(as_toml(replace(CONFIG, epochs=0.1), STUDENT), encoding="utf-8")
    own = ("train", "intent", "--label-set", "mine", "--data", file, "--full", "--sets", sets)
    said = heed(*own, "--base", base, "--out", run, "--config", config)
    assert f"heed export {run} --data {sets}" in " ".join(said.split())
    heed("export", run, "--data", sets, "--out", tmp_path / "intent")
    bundle = load_bundle(tmp_path / "intent")
    mine = load_bundle_heads(bundle.path, bundle.encoder_digest)["mine"]
    assert mine.labels == ("open", "shut")
    vectors = open_text_encoder(bundle).encode_dialogues(
        [(Turn("customer", text),) for text in ("BCDE open", "KKMP shut")]
    )
    assert predict_intents(mine, vectors).confidences.argmax(axis=1).tolist() == [0, 1]


def heed(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def as_toml(config: IntentConfig, student: IntentDistillation) -> str:
    def lines(row: dict[str, Any]) -> list[str]:
        return [f"{name} = {json.dumps(value)}" for name, value in row.items() if value is not None]

    content = asdict(config)
    tables = {name: content.pop(name) for name in ("label_sets", "reply_sets")}
    written = [*lines(content), "[student]", *lines(asdict(student))]
    for name, rows in tables.items():
        for row in rows:
            written += [f"[[{name}]]", *lines(row)]
    return "\n".join(written)


def test_a_graph_that_drifts_is_refused_and_nothing_is_written(
    student: Path, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.export.intent.MIN_COSINE", 1.01)
    with pytest.raises(ParityError, match="mean cosine"):
        export_intents(student, sets, tmp_path / "intent", "1.0.0", log=lambda line: None)
    assert not list(tmp_path.iterdir())


def test_a_student_of_other_sets_is_refused(teacher: Path, sets: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="other intents"):
        distill_intents(replace(CONFIG, label_sets=CONFIG.label_sets[:1]), STUDENT, teacher, sets, tmp_path)


def test_a_teams_own_examples_become_one_more_label_set(sets: Path, tmp_path: Path) -> None:
    file = tmp_path / "my.jsonl"
    rows = [{"text": f"{word} {number}", "label": word} for number in range(20) for word in ("open", "shut")]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = add_user_examples(CONFIG, "mine", file)
    material = load_training_data(config, sets)
    assert material.labels["mine"] == ("open", "shut")
    assert len(material.held_out["mine"]) == 4
    with pytest.raises(ConfigError, match="already"):
        add_user_examples(CONFIG, "talk", file)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["open", "shut"] * 9, "18 examples; at least 20"),
        (["open"] * 30, "1 intent; at least 2"),
        ([*["open"] * 28, "shut", "shut"], "my.jsonl, of which .*'shut' has one example"),  # the tenth of ten is kept
    ],
)
def test_too_few_examples_to_teach_an_encoder_are_refused_before_it_is_taught(
    labels: list[str], says: str, tmp_path: Path
) -> None:
    file = tmp_path / "my.jsonl"
    file.write_text("\n".join(json.dumps({"text": label, "label": label}) for label in labels), encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        add_user_examples(CONFIG, "mine", file)


def test_the_folder_says_what_was_trained(teacher: Path, student: Path) -> None:
    assert load_intent_run(teacher).layers is None
    run = load_intent_run(student)
    assert run.layers == (1,)
    assert run.config == CONFIG


def test_dialogues_are_read_with_what_came_before(sets: Path) -> None:
    rows = read_utterances(sets, CONFIG.label_sets[1], "validation")
    assert [len(row.turns) for row in rows[:3]] == [1, 2, 3]  # the empty sentence is left out
    assert [row.label for row in rows[:3]] == ["bank/pay", "bank/againpay", "contentonly"]
    assert "contentonly" in SHARED_INTENTS
    assert {row.split for row in rows} == {"bank", "shop"}
    assert None in {row.label for row in read_utterances(sets, CONFIG.label_sets[0], "train")}


def test_an_intent_of_dstc11_keeps_its_domain_only_where_its_meaning_has_no_other(tmp_path: Path) -> None:
    labels = ("banking/UpdateEmail", "finance/UpdateEmail", "banking/CloseBankAccount", "insurance/GetQuote")
    rows = [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]
    write(tmp_path / "three" / "train.jsonl.gz", rows)
    found = read_utterances(tmp_path, LabelSet("three", "three", "dstc11", "en", "MIT"), "train")
    assert [row.label for row in found] == ["UpdateEmail", "UpdateEmail", "CloseAccount", "insurance/GetQuote"]


def test_replies_follow_their_dialogues_own_templates(sets: Path) -> None:
    exchanges = read_exchanges(sets, CONFIG.reply_sets[0], "validation")
    assert exchanges[0].turns[-1].text.endswith("pay it")
    assert (exchanges[0].reply, exchanges[0].template) == ("I pay it", "I pay amount now")
    assert exchanges[0].options == ("I pay amount now", "I stop it")
    assert len(exchanges) == 30  # what follows no template is no reply to learn
    assert all_templates(sets, CONFIG.reply_sets[0]) == ["I pay amount now", "I stop it", "never"]
    assert fill_template("{a_b:s} is\n{c} ") == "a b is c"


def test_rows_that_are_held_out_are_not_trained_on(sets: Path) -> None:
    rows = read_utterances(sets, CONFIG.label_sets[0], "validation")
    twin = replace(rows[0], turns=(Turn("customer", rows[0].turns[0].text.upper() + "!"),))
    assert remove_held_out([twin, *rows[1:3]], rows[:1]) == rows[1:3]


def test_the_margin_makes_a_right_answer_harder_and_a_stranger_is_to_be_far_from_all() -> None:
    cosines = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.1, 0.1], [0.9, 0.1, 0.1]])
    near, even, loud = (
        float(margin_loss(cosines[row : row + 1], torch.tensor([label])))
        for row, label in ((0, 0), (1, OUT_OF_SCOPE), (2, OUT_OF_SCOPE))
    )
    plain = float(torch.nn.functional.cross_entropy(24.0 * cosines[:1], torch.tensor([0])))
    assert near > plain
    assert even == pytest.approx(0.5 * np.log(3), abs=1e-4)
    assert loud > even


def test_each_reply_of_a_batch_is_a_candidate_once(teacher: Path, sets: Path) -> None:
    planner = BatchPlanner(CONFIG, Tokenizer(teacher / TOKENIZER, 64), load_training_data(CONFIG, sets))
    batch = next(batch for batch in planner.batches() if isinstance(batch[0], ReplyRow))
    texts, right = reply_candidates(batch)
    keys = [tokens.ids.tobytes() for tokens in texts]
    assert len(set(keys)) == len(keys)
    assert [keys[place] for place in right] == [row.reply.ids.tobytes() for row in batch]


def test_the_shipped_configuration_can_be_read() -> None:
    config, student = read_intent_config(Path("models/configs/intent.toml"))
    assert {source.name for source in config.label_sets} == {"banking77", "clinc150", "dstc11", "smp_zh", "multidogo"}
    assert len(student.layers) == 8
