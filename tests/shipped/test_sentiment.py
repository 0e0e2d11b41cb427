"""The shipped sentiment bundle does what a user would check first, in both languages."""

from __future__ import annotations

import numpy as np
import pytest

from models.bundle import SHIPPED, load_bundle
from models.prediction.calibration import calibrate_logits, find_scaling
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import collate
from models.text.tokenizer import Tokenizer

BUNDLE = load_bundle(SHIPPED)
TOKENIZER = Tokenizer.from_bundle(BUNDLE)
RUNTIME = OnnxRuntime(BUNDLE.graph, threads=2)


def predict_label(text: str, entity: str | None = None) -> str:
    tokens = TOKENIZER.encode(text, entity)
    logits = RUNTIME.run(collate([tokens], TOKENIZER.pad_id))
    scaling = find_scaling(BUNDLE.calibration, tokens.language, tokens.has_entity)
    return BUNDLE.task.labels[int(calibrate_logits(logits, [scaling])[0].argmax())]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Shares of Acme plunge after profit warning", "negative"),
        ("Acme shares soar to record high on strong earnings", "positive"),
        ("Acme to hold its annual meeting on Tuesday", "neutral"),
        ("The food was wonderful and the staff friendly", "positive"),
        ("Terrible phone, the battery died after two days", "negative"),
        ("公司净利润同比增长50%，股价涨停", "positive"),
        ("股东拟减持不超过6%股份，公司被立案调查", "negative"),
        ("质量很好，物流很快，非常满意", "positive"),
        ("太差了，用了两天就坏了，客服也不理人", "negative"),
    ],
)
def test_a_plain_text_gets_the_obvious_label(text: str, label: str) -> None:
    assert predict_label(text) == label


@pytest.mark.parametrize(
    ("text", "up", "down"),
    [
        ("Stock A soars while B plunges", "A", "B"),
        ("Stock A soars while B plunges", "Stock A", "B"),
        ("B plunges while Stock A soars", "Stock A", "B"),
        ("Infosys gains 4% on upbeat guidance; Wipro falls on weak outlook", "Infosys", "Wipro"),
        ("平安银行：净利润大增；永吉股份：股东拟减持", "平安银行", "永吉股份"),
    ],
)
def test_each_entity_of_a_text_has_a_separate_sentiment(text: str, up: str, down: str) -> None:
    assert predict_label(text, up) == "positive"
    assert predict_label(text, down) == "negative"


def test_scores_do_not_depend_on_the_batch() -> None:
    texts = ["up", "股价上涨", "Acme falls " * 40, "质量很差，" * 30, "ok 好 👍", "Profit rises 5%"] * 4
    tokens = [TOKENIZER.encode(text) for text in texts]
    together = RUNTIME.run(collate(tokens, TOKENIZER.pad_id))
    alone = np.concatenate([RUNTIME.run(collate([item], TOKENIZER.pad_id)) for item in tokens])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_the_bundle_is_small_and_its_card_states_its_metrics() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*")) <= 80_000_000
    metrics = {(metric.dataset, metric.name): metric.value for metric in BUNDLE.metrics}
    card = (SHIPPED / "CARD.md").read_text(encoding="utf-8")
    for name in ("sentfin", "sentfin_entities", "twitter_financial_news", "finfe_zh"):
        assert f"{metrics[name, 'macro_f1']:.3f}" in card
    assert "dequantised 4-bit" in card
    assert "research data, no stated licence" in card
