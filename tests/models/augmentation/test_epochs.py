from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from models.augmentation.epochs import (
    add_noise,
    concatenate_pair,
    extract_leading_entities,
    hide_opinions,
    make_epoch,
)
from models.data.classification import Dataset, Example

THREE = ("negative", "neutral", "positive")


def example(text: str, label: str, entity: str | None = None, dataset: str = "news") -> Example:
    return Example(text, label, entity, dataset, "en", THREE)


def test_a_concatenated_row_has_both_texts_and_the_label_of_its_target() -> None:
    rows = [example("Acme soars", "positive", "Acme"), example("Beta plunges", "negative", "Beta")]
    for seed in range(40):
        row = concatenate_pair(random.Random(seed), rows)
        assert row.entity is not None
        assert "soars" in row.text
        assert "plunges" in row.text
        target_half = f"{row.entity} {'soars' if row.label == 'positive' else 'plunges'}"
        assert target_half in row.text


def test_a_leading_company_name_becomes_the_entity() -> None:
    texts = ("永吉股份：拟减持", "晚间公告：永吉：减持", "上涨", "某某某某某某公司：减持")
    rows = [example(text, "negative") for text in texts]
    assert [row.entity for row in extract_leading_entities(rows, "：")] == ["永吉股份", "晚间公告"]
    assert extract_leading_entities(rows, None) == []


def test_an_epoch_depends_on_its_seed_and_continues_after_the_previous_epoch() -> None:
    rows = [example(f"text {number}", "neutral") for number in range(100)]
    sets = [Dataset("news", "en", THREE, "MIT", share=0.3)]
    epochs = [make_epoch(rows, sets, seed=1, epoch=epoch, augment=0.0) for epoch in range(4)]
    assert [len(epoch) for epoch in epochs] == [30] * 4
    assert epochs[0] == make_epoch(rows, sets, seed=1, epoch=0, augment=0.0)
    assert epochs[0] != make_epoch(rows, sets, seed=2, epoch=0, augment=0.0)
    seen = Counter(row.text for epoch in epochs for row in epoch)
    assert sorted(seen.values()) == [1] * 80 + [2] * 20


def test_a_share_above_one_repeats_rows_evenly() -> None:
    rows = [example(f"text {number}", "neutral") for number in range(10)]
    sets = [Dataset("news", "en", THREE, "MIT", share=2.5)]
    seen = Counter(row.text for row in make_epoch(rows, sets, seed=1, epoch=0, augment=0.0))
    assert sorted(seen.values()) == [2] * 5 + [3] * 5


def test_an_opinion_is_hidden_in_neutral_sentences_of_its_language_that_do_not_name_its_entity() -> None:
    opinions = [example("Acme soars", "positive", "Acme"), example("质量太差", "negative")]
    opinions[1] = replace(opinions[1], language="zh")
    neutrals = [example(text, "neutral") for text in ("It is Monday", "ACME has a desk.", "Rain fell.")]
    neutrals += [replace(example("今天开会。", "neutral"), language="zh")]
    for seed in range(20):
        for row in hide_opinions(random.Random(seed), [*opinions, *neutrals], 4):
            opinion = opinions[row.language == "zh"]
            assert (row.label, row.entity) == (opinion.label, opinion.entity)
            assert opinion.text in row.text
            assert len(row.text) > 50
            assert ("开会" in row.text) == (row.language == "zh")
            assert "desk" not in row.text


def test_opinions_without_neutral_sentences_stay_alone() -> None:
    assert hide_opinions(random.Random(0), [example("Acme soars", "positive")], 3) == []


def test_noise_leaves_the_entity_as_it_is() -> None:
    row = example("Shares of Acme Foods plunged after a warning", "negative", "Acme Foods")
    texts = {add_noise(row, random.Random(seed)) for seed in range(60)}
    assert len(texts) > 20
    assert all("Acme Foods" in text for text in texts)
