from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from models.data.dialogues import (
    SHARED_INTENTS,
    LabelSet,
    fill_template,
    read_reply_examples,
    read_reply_templates,
    read_utterances,
    remove_held_out,
)
from models.text.tokenizer import Turn
from tests.support.tiny_dialogues import CONFIG, write_dialogue_sets, write_rows


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dialogue_sets(tmp_path_factory.mktemp("sets"))


def test_sentences_are_read_after_their_context(sets: Path) -> None:
    rows = read_utterances(sets, CONFIG.label_sets[1], "validation")
    assert [len(row.turns) for row in rows[:3]] == [1, 2, 3]  # the empty sentence is left out
    assert [row.label for row in rows[:3]] == ["bank/pay", "bank/againpay", "contentonly"]
    assert "contentonly" in SHARED_INTENTS
    assert {row.split for row in rows} == {"bank", "shop"}
    assert None in {row.label for row in read_utterances(sets, CONFIG.label_sets[0], "train")}


def test_an_intent_of_dstc11_keeps_its_domain_unless_domains_share_it(tmp_path: Path) -> None:
    labels = ("banking/UpdateEmail", "finance/UpdateEmail", "banking/CloseBankAccount", "insurance/GetQuote")
    rows = [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]
    write_rows(tmp_path / "three" / "train.jsonl.gz", rows)
    utterances = read_utterances(tmp_path, LabelSet("three", "three", "dstc11", "en", "MIT"), "train")
    assert [row.label for row in utterances] == ["UpdateEmail", "UpdateEmail", "CloseAccount", "insurance/GetQuote"]


def test_replies_follow_the_templates_of_their_dialogue(sets: Path) -> None:
    examples = read_reply_examples(sets, CONFIG.reply_sets[0], "validation")
    assert examples[0].turns[-1].text.endswith("pay it")
    assert (examples[0].reply, examples[0].template) == ("I pay it", "I pay amount now")
    assert examples[0].options == ("I pay amount now", "I stop it")
    assert len(examples) == 30  # replies without a template are left out
    assert read_reply_templates(sets, CONFIG.reply_sets[0]) == ["I pay amount now", "I stop it", "never"]
    assert fill_template("{a_b:s} is\n{c} ") == "a b is c"


def test_held_out_rows_are_removed_from_training(sets: Path) -> None:
    rows = read_utterances(sets, CONFIG.label_sets[0], "validation")
    copy = replace(rows[0], turns=(Turn("customer", rows[0].turns[0].text.upper() + "!"),))
    assert remove_held_out([copy, *rows[1:3]], rows[:1]) == rows[1:3]
