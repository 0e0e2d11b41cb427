"""A text has the same scores alone, in a batch and from the cache, with the shipped bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import SHIPPED, load_bundle
from models.runtime.onnx import OnnxRuntime
from models.text.tokenizer import Tokenizer
from service.inference.cache import CachedPredictor
from service.inference.engine import Engine
from service.inference.predictor import Classification, Item, PredictionBatch
from service.telemetry.metrics import Metrics
from tests.support import fake_model as fakes

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

TEXTS, REQUEST_ITEMS, TOLERANCE = 2_000, 32, 1e-3
WORDS = (
    *("shares", "profit", "rose", "fell", "Acme", "bank", "sharply", "service", "awful", "great", "not", "5%", "the"),
    *("股价", "上涨", "公司", "净利润", "下跌", "质量", "很好", "客服", "不", "，", "。", "减持", "!", "👍"),
)


def random_items() -> list[Item]:
    rng = np.random.default_rng(11)
    items = []
    for number in range(TEXTS):
        words = rng.choice(WORDS, size=int(2 ** rng.uniform(0, 4)))
        items.append(Item(" ".join([*words, str(number)]), str(words[0]) if number % 7 == 0 else None))
    return items


def all_scores(answers: Sequence[PredictionBatch]) -> NDArray[np.float64]:
    outcomes = [outcome for answer in answers for outcome in answer.outcomes]
    assert all(isinstance(outcome, Classification) for outcome in outcomes)
    return np.array([list(outcome.scores.values()) for outcome in outcomes if isinstance(outcome, Classification)])


def count_batches(metrics: Metrics) -> float:
    lines = metrics.render().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("heed_batch_items_count"))


async def test_2000_texts_get_the_same_scores_alone_in_batches_and_from_the_cache(metrics: Metrics) -> None:
    bundle = load_bundle(SHIPPED)
    tokenizer = Tokenizer.from_bundle(bundle)
    # The budget and the bound on padding are so large that a batch is most of a request.
    limits = replace(fakes.LIMITS, batch_tokens=4_096, batch_items=REQUEST_ITEMS, queue_tokens=1 << 20, padding=8.0)
    engine = Engine(bundle, tokenizer, OnnxRuntime(bundle.graph, threads=2), limits, metrics.task("sentiment"))
    cache = CachedPredictor(engine, TEXTS, metrics.task("sentiment"))
    items = random_items()
    await cache.start()
    alone = all_scores([await engine.predict([item]) for item in items])
    requests = [items[start : start + REQUEST_ITEMS] for start in range(0, TEXTS, REQUEST_ITEMS)]
    together = all_scores([await cache.predict(request) for request in requests])
    computed = count_batches(metrics)
    cached = all_scores([await cache.predict([item]) for item in reversed(items)])[::-1]
    await cache.stop()
    assert count_batches(metrics) == computed > len(requests) / 2
    np.testing.assert_allclose(together, alone, atol=TOLERANCE)
    np.testing.assert_array_equal(cached, together)
