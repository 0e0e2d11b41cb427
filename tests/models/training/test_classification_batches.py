from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from models.data.classification import Dataset, Example
from models.tasks import SENTIMENT
from models.text.tokenizer import Tokenizer
from models.training.classification_batches import ClassificationConfig, TrainingRow, mix_genres, plan_batches
from tests.models.conftest import THREE_LABELS
from tests.support.tiny_bundle import write_tokenizer
from tests.support.tiny_networks import tiny_config

SOURCES = (
    Dataset("news", "en", THREE_LABELS, "MIT", genre="headline"),
    Dataset("reports", "en", THREE_LABELS, "MIT", genre="prose"),
)
CONFIG = tiny_config(
    ClassificationConfig,
    task="sentiment",
    seed=1,
    epochs=1,
    augment=0.0,
    datasets=SOURCES,
    batch_examples=10,
)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    write_tokenizer(tmp_path / "tokenizer.json")
    return Tokenizer(tmp_path / "tokenizer.json", 64)


def examples(count: int) -> list[Example]:
    return [
        Example(f"{source.name} {number} gains", "positive", None, source.name, "en", THREE_LABELS)
        for source in SOURCES
        for number in range(count if source.name == "news" else count // 4)
    ]


def plan(tokenizer: Tokenizer, **settings: Any) -> list[TrainingRow]:
    config = tiny_config(
        ClassificationConfig, task="sentiment", seed=1, epochs=1, augment=0.0, datasets=SOURCES, **settings
    )
    return [row for batch in plan_batches(config, SOURCES, SENTIMENT, tokenizer, examples(400)) for row in batch]


def test_every_step_holds_rows_of_the_genre_with_the_most_and_the_others_are_spread_evenly(
    tokenizer: Tokenizer,
) -> None:
    batches = plan_batches(CONFIG, SOURCES, SENTIMENT, tokenizer, examples(400))
    counts = [Counter(row.source for row in batch) for batch in batches]
    assert all(0 < count[0] <= 5 for count in counts)
    with_prose = [index for index, count in enumerate(counts) if count[1]]
    assert sum(count[1] for count in counts) == 100
    gaps = {after - before for before, after in pairwise(with_prose)}
    assert gaps <= {3, 4, 5}


def test_no_row_is_lost_when_genres_are_mixed(tokenizer: Tokenizer) -> None:
    rows = [TrainingRow(tokenizer.encode(text), (True,) * 3, (True,) * 3) for text in ("a", "b b", "c c c")] * 7
    mixed = mix_genres([rows, rows[:4]], CONFIG, random.Random(0))
    assert sum(map(len, mixed)) == 25


def test_the_shares_of_noisy_rows_and_of_twins_are_those_of_the_configuration(tokenizer: Tokenizer) -> None:
    clean = [row.tokens.ids.tolist() for row in plan(tokenizer)]
    assert not any(row.twin for row in plan(tokenizer))
    noisy = [row.tokens.ids.tolist() for row in plan(tokenizer, noised=0.5)]
    changed = sum((Counter(map(tuple, noisy)) - Counter(map(tuple, clean))).values())
    assert 0.35 * len(clean) < changed < 0.6 * len(clean)
    twins = [row for row in plan(tokenizer, twins=0.3) if row.twin is not None]
    assert 0.2 * len(clean) < len(twins) < 0.4 * len(clean)
    assert sum(row.twin.ids.tolist() != row.tokens.ids.tolist() for row in twins if row.twin) > 0.8 * len(twins)
