"""Attention maps in explanations of sentiment, as JSON and as a file of arrays."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.schemas.explain import MAX_PACKED_NUMBERS
from tests.support.explain_sentiment_app import Explains, shown
from tests.support.service_app import assert_problem
from tests.support.tiny_bundle import HEADS, LAYERS

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("heads", "which"), [("all", [0, 1, 2, 3]), ([3, 1], [3, 1]), (None, [0, 1, 2, 3])])
async def test_maps_are_of_the_requested_layers_and_heads(explains: Explains, heads: Any, which: list[int]) -> None:
    (result,) = shown(await explains.ask("ab 利润", method="attention", layers=[1, 0], heads=heads))
    attention = result["attention"]
    assert (attention["layers"], attention["heads"]) == ([1, 0], which)
    assert (attention["model_layers"], attention["model_heads"]) == (LAYERS, HEADS)
    assert attention["tokens"] == ["<s>", "▁", "a", "b", "▁", "利", "润", "</s>"]
    weights = np.asarray(attention["weights"])
    assert weights.shape == (2, len(which), 8, 8)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-3)
    assert result["signed"] is False
    assert 0 < sum(word["weight"] for word in result["words"]) < 1


async def maps_of(explains: Explains, inputs: Any, **more: Any) -> NDArray[np.float64]:
    (result,) = shown(await explains.ask(inputs, method="attention", **more))
    return np.asarray(result["attention"]["weights"])


async def test_maps_are_reduced_to_their_mean(explains: Explains) -> None:
    whole = await maps_of(explains, "ab 利润", layers=[0, 1], heads=[0, 2])
    mean = await maps_of(explains, "ab 利润", layers=[0, 1], heads=[0, 2], reduce="mean")
    assert mean.shape == (1, 1, 8, 8)
    np.testing.assert_allclose(mean[0, 0], whole.mean(axis=(0, 1)), atol=2e-4)


async def test_a_rollout_follows_attention_through_all_layers(explains: Explains) -> None:
    whole = (await maps_of(explains, "ab 利润", layers=[0, 1])).mean(axis=1)
    rolled = await maps_of(explains, "ab 利润", reduce="rollout")
    mixed = (whole + np.eye(8)) / 2
    np.testing.assert_allclose(rolled[0, 0], mixed[1] @ mixed[0], atol=5e-4)
    (result,) = shown(await explains.ask("ab 利润", method="attention", reduce="rollout"))
    assert result["attention"]["reduce"] == "rollout"
    assert (result["attention"]["layers"], result["attention"]["heads"]) == ([0, 1], [0, 1, 2, 3])
    assert 0 < sum(word["weight"] for word in result["words"]) < 1


async def test_a_map_of_the_longest_text_fits(explains: Explains) -> None:
    assert (await maps_of(explains, "a" * 3000, reduce="rollout")).shape == (1, 1, 512, 512)


async def test_a_file_of_arrays_has_the_same_maps(explains: Explains) -> None:
    options: dict[str, Any] = {"method": "attention", "layers": [1, 0], "heads": [2]}
    inputs = ["ab", {"text": " ", "id": "x"}, {"text": "利润 cd", "id": "y"}]
    answer = await explains.ask(inputs, {"Accept": "application/x-npz"}, **options)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-npz")
    file = np.load(io.BytesIO(answer.content), allow_pickle=False)
    assert sorted(file) == ["answer", "weights_0", "weights_2"]
    packed, plain = json.loads(str(file["answer"])), (await explains.ask(inputs, **options)).json()
    assert packed["results"][1]["error"]["code"] == "empty_text"
    for index in (0, 2):
        name = packed["results"][index]["attention"]["weights"]
        packed["results"][index]["attention"]["weights"] = plain["results"][index]["attention"]["weights"]
        np.testing.assert_allclose(file[name], plain["results"][index]["attention"]["weights"], atol=1e-6)
    assert packed["results"] == plain["results"]


async def test_a_file_of_arrays_may_be_larger_up_to_a_limit(explains: Explains) -> None:
    options: dict[str, Any] = {"method": "attention", "layers": [0, 1], "heads": "all"}
    accept = {"Accept": "application/x-npz"}
    assert_problem(await explains.ask("a" * 300, **options), 413, "explanation_too_large", "/inputs")
    assert (await explains.ask("a" * 300, accept, **options)).status_code == 200
    refused = await explains.ask("a" * 3000, accept, **(options | {"layers": [0, 1, 0]}))
    assert_problem(refused, 413, "explanation_too_large", "/inputs")
    assert f"over {MAX_PACKED_NUMBERS} numbers" in refused.json()["detail"]


async def test_without_maps_there_is_no_file_of_arrays(explains: Explains) -> None:
    shown(await explains.ask("ab", {"Accept": "application/x-npz"}))
