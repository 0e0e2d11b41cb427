"""A tiny encoder and data sets that it learns in seconds, for training and distillation."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from models.data.classification import Dataset
from models.training.classification import train_classifier
from models.training.classification_batches import ClassificationConfig
from tests.support.tiny_bundle import PIECES, write_tokenizer
from tests.support.tiny_networks import tiny_config, tiny_encoder

THREE_LABELS, TWO_LABELS = ("negative", "neutral", "positive"), ("negative", "positive")
WORDS = {"negative": ("falls", "跌"), "neutral": ("is", "的"), "positive": ("gains", "涨")}

CONFIG = tiny_config(
    ClassificationConfig,
    task="sentiment",
    seed=7,
    epochs=5,
    layer_decay=0.9,
    augment=0.2,
    checkpoint_every=5,
    datasets=(
        Dataset("news", "en", THREE_LABELS, "MIT"),
        Dataset("companies", "en", THREE_LABELS, "MIT"),
        Dataset("reviews_zh", "zh", TWO_LABELS, "MIT", smoothing=0.1, bootstrap=0.1, absent_share=0.05),
    ),
)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_encoder(1, len(PIECES), layers=2, spread=0.1).save_pretrained(folder)
    write_tokenizer(folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(2)
    for dataset in CONFIG.datasets:
        (folder / dataset.name).mkdir()
        for split, count in (("train", 90), ("validation", 45)):
            rows = []
            for number in range(count):
                label = dataset.labels[number % len(dataset.labels)]
                name = "".join(rng.choices("BCDEGHKMPQ", k=4))
                word = WORDS[label][dataset.language == "zh"]
                rows.append(
                    {"text": f"{name} {word}" if dataset.language == "en" else f"{name}{word}了", "label": label}
                )
                if dataset.name == "companies":
                    rows[-1]["entity"] = name
            with gzip.open(folder / dataset.name / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return folder


@pytest.fixture(scope="session")
def run(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_classifier(CONFIG, str(base), data, tmp_path_factory.mktemp("run"))
