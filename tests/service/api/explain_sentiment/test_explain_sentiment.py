"""Explanations of sentiment over HTTP, with a real tiny bundle in this process, and once with the shipped bundle."""

from __future__ import annotations

import numpy as np
import pytest

from models.bundle import SHIPPED, load_bundle
from models.explain.methods import SUPPORTED_METHODS
from models.tasks import SENTIMENT
from service.telemetry.metrics import Metrics
from tests.support.explain_sentiment_app import Explains, Gate, serving, shown
from tests.support.service_app import assert_problem

pytestmark = pytest.mark.anyio

NEWS = "Shares of Acme plunge after profit warning"


async def test_texts_are_explained_in_order(explains: Explains) -> None:
    inputs = ["ab cd", {"text": "公司利润增长 now", "entity": "公司", "id": "n-17"}]
    first, second = shown(await explains.ask(inputs))
    assert [(word["text"], word["start"], word["end"]) for word in first["words"]] == [("ab", 0, 2), ("cd", 3, 5)]
    assert (first["method"], first["signed"], first["id"], second["id"]) == ("two_sided_occlusion", True, None, "n-17")
    assert first["target"] == first["label"] == max(first["scores"], key=first["scores"].__getitem__)
    assert (first["truncated"], first["read_span"], "attention" in first) == (False, {"start": 0, "end": 5}, False)
    assert any(word["weight"] for word in first["words"])
    named = [word for word in second["words"] if word["is_entity"]]
    assert "".join(word["text"] for word in named) == "公司"
    assert {word["weight"] for word in named} == {0.0}


async def test_the_explained_label_and_scores_are_the_served_ones(explains: Explains) -> None:
    inputs = ["ab cd", "公司利润增长", "up " * 400, {"text": "A up B down", "entity": "B"}, "‰ ‰", "x"]
    answer = await explains.client.post("/v1/sentiment", json={"inputs": inputs})
    served = answer.json()["results"]
    for result, expected in zip(shown(await explains.ask(inputs)), served, strict=True):
        assert (result["label"], result["tokens"], result["truncated"]) == (
            expected["label"],
            expected["tokens"],
            expected["truncated"],
        )
        assert result["scores"] == pytest.approx(expected["scores"], abs=1e-5)


async def test_weights_explain_the_target(explains: Explains) -> None:
    by_label = {label: shown(await explains.ask("ab cd", target=label))[0] for label in SENTIMENT.labels}
    assert [result["target"] for result in by_label.values()] == list(by_label)
    assert len({result["label"] for result in by_label.values()}) == 1
    # Probabilities sum to 1, so the effects of a word on all labels sum to 0.
    sums = np.sum([[word["weight"] for word in result["words"]] for result in by_label.values()], axis=0)
    np.testing.assert_allclose(sums, 0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", *SUPPORTED_METHODS["sentiment"]])
async def test_every_supported_method_works(explains: Explains, method: str) -> None:
    (result,) = shown(await explains.ask("ab cd 利润", method=method))
    assert result["method"] == ("two_sided_occlusion" if method == "auto" else method)
    assert result["signed"] is (method != "value_norm")


@pytest.mark.slow
@pytest.mark.parametrize("text", ["x", "‰‰‰ ‰", "🙂", "<s>"])
@pytest.mark.parametrize("method", SUPPORTED_METHODS["sentiment"])
async def test_texts_of_a_single_word_or_of_unknown_tokens_are_explained(
    explains: Explains, text: str, method: str
) -> None:
    (result,) = shown(await explains.ask(text, method=method))
    assert "".join(word["text"] for word in result["words"]) == text.replace(" ", "")


async def test_a_text_that_is_all_entity_has_weight_zero(explains: Explains) -> None:
    (result,) = shown(await explains.ask({"text": "Acme", "entity": "Acme"}))
    assert [(word["is_entity"], word["weight"]) for word in result["words"]] == [(True, 0.0)]


async def test_a_long_text_has_the_span_that_was_read(explains: Explains) -> None:
    (result,) = shown(await explains.ask(" ab" * 2000))
    assert result["truncated"] is True
    assert result["words"][-1]["end"] <= result["read_span"]["end"] < 6000
    assert result["tokens"] == 512


async def test_a_bad_item_does_not_affect_the_rest(explains: Explains) -> None:
    good, bad, nameless = (
        await explains.ask(["ab", {"text": " ", "id": "x"}, {"text": "a", "entity": "\u200b"}])
    ).json()["results"]
    assert good["words"][0]["text"] == "ab"
    assert (bad["error"]["code"], bad["id"]) == ("empty_text", "x")
    assert nameless["error"]["code"] == "invalid_request"


async def test_an_entity_that_the_text_does_not_name_is_not_explained(explains: Explains) -> None:
    unnamed = {"text": "Acme rises", "entity": "Birch", "id": "x"}
    good, failed = (await explains.ask(["ab", unnamed])).json()["results"]
    assert good["words"][0]["text"] == "ab"
    assert (failed["error"]["status"], failed["error"]["code"], failed["id"]) == (422, "entity_not_found", "x")
    assert_problem(await explains.ask(unnamed), 422, "entity_not_found", "/inputs/entity")


async def test_the_model_does_not_run_for_an_entity_that_the_text_does_not_name(
    explains: Explains, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    gate.open.set()
    unnamed = {"text": "Acme rises", "entity": "Birch"}
    assert_problem(await explains.ask(unnamed), 422, "entity_not_found", "/inputs/entity")
    assert gate.runs == 0
    shown(await explains.ask(unnamed | {"entity": "Acme"}))
    assert gate.runs > 0


@pytest.mark.slow
async def test_the_shipped_model_rests_on_plausible_words(metrics: Metrics) -> None:
    async with serving(load_bundle(SHIPPED), metrics) as shipped:
        inputs = [NEWS, "公司利润大增，股价上涨", {"text": "Stock A soars while B plunges", "entity": "B"}]
        english, chinese, towards = shown(await shipped.ask(inputs, {"X-Request-Timeout-Ms": "60000"}))
        heaviest = max(english["words"], key=lambda word: word["weight"])
        assert (english["label"], heaviest["text"]) == ("negative", "plunge")
        assert NEWS[heaviest["start"] : heaviest["end"]] == "plunge"
        assert chinese["label"] == "positive"
        assert towards["label"] == await shipped.label(inputs[2])
        (looked,) = shown(await shipped.ask(NEWS, method="attention", layers=[7], heads=[0]))
        assert len(looked["attention"]["weights"][0][0]) == looked["tokens"]
        assert_problem(await shipped.ask(NEWS, method="attention", layers=[8]), 422, "invalid_request", "/layers/0")
