"""Requests for explanations that can be answered: every method, maps of attention, maps as files of arrays."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.bench.answers.phrases import Writer
from tests.bench.answers.ranking_requests import SHOP, user
from tests.bench.answers.requests import Request, post, rng_of
from tests.bench.answers.text_requests import LABEL_SETS, intent_input, replies_choice, sentiment_input

NPZ = "application/x-npz"
_METHODS = (None, "auto", "both_ends", "occlusion", "shapley", "integrated_gradients", "value_norm")
_REPLY_METHODS = _METHODS[:-1]
_HISTORY_METHODS = (None, "auto", "both_ends", "occlusion", "shapley", "attention")
_MAPS: tuple[dict[str, Any], ...] = (
    {"layers": [0]},
    {"layers": [1, 0], "heads": [2, 0]},
    {"layers": [2], "heads": "all", "reduce": "mean"},
    {"layers": [0, 1, 2], "reduce": "mean"},
    {"reduce": "rollout"},
)


def sentiment_explanations(count: int) -> list[Request]:
    rng = rng_of("explain sentiment")
    writer = Writer(rng)
    return [_explain_sentiment(rng, writer, number) for number in range(count)]


def _explain_sentiment(rng: Random, writer: Writer, number: int) -> Request:
    shown, accept = _how(rng, _METHODS, number)
    if number % 5 == 0:
        given: Any = [sentiment_input(rng, writer) for _ in range(rng.randint(1, 4))]
        given += [" "] if rng.random() < 0.3 else []
        given = given[:4]
    else:
        given = writer.long(6) if number % 17 == 1 else sentiment_input(rng, writer)
    body = {"inputs": given} | shown
    if rng.random() < 0.4:
        body["target"] = rng.choice(("negative", "neutral", "positive", None))
    return post("/v1/explain/sentiment", body, **accept)


def intent_explanations(count: int) -> list[Request]:
    rng = rng_of("explain intent")
    writer = Writer(rng)
    return [_explain_intent(rng, writer, number) for number in range(count)]


def _explain_intent(rng: Random, writer: Writer, number: int) -> Request:
    shown, accept = _how(rng, _METHODS, number)
    many = number % 5 == 0
    body = {
        "inputs": [intent_input(rng, writer) for _ in range(3)] if many else intent_input(rng, writer),
    } | shown
    label_set = (*LABEL_SETS, None)[number % 6]
    if label_set is not None:
        body["labels"] = label_set
    if label_set == "banking77" and rng.random() < 0.6:
        body["target"] = rng.choice(("card_arrival", "change_pin", "lost_or_stolen_card"))
    return post("/v1/explain/intent", body, **accept)


def reply_explanations(count: int) -> list[Request]:
    rng = rng_of("explain replies")
    writer = Writer(rng)
    return [_explain_replies(rng, writer, number) for number in range(count)]


def _explain_replies(rng: Random, writer: Writer, number: int) -> Request:
    shown, accept = _how(rng, _REPLY_METHODS, number)
    body = replies_choice(rng, writer, rng.choice((1, 1, 2, 4)), rng.choice((1, 3, 6))) | shown
    if rng.random() < 0.4:
        body["target"] = 0
    return post("/v1/explain/replies", body, **accept)


def _how(rng: Random, methods: tuple[str | None, ...], number: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the fields of a method, or one in four times those of maps, of which half come as a file."""
    if number % 4 == 3:
        return {"method": "attention"} | rng.choice(_MAPS), {"accept": NPZ} if rng.random() < 0.5 else {}
    method = methods[number % len(methods)]
    return ({} if method is None else {"method": method}), {"accept": NPZ} if rng.random() < 0.05 else {}


def recommendation_explanations(count: int) -> list[Request]:
    rng = rng_of("explain recommend")
    writer = Writer(rng)
    return [_explain_recommend(rng, writer, number) for number in range(count)]


def _explain_recommend(rng: Random, writer: Writer, number: int) -> Request:
    if number % 6 == 0:
        inputs: Any = [_explained_user(rng, writer, number) for _ in range(rng.randint(1, 4))]
    else:
        inputs = _explained_user(rng, writer, number)
    method = _HISTORY_METHODS[number % len(_HISTORY_METHODS)]
    return post("/v1/explain/recommend", {"inputs": inputs} | ({} if method is None else {"method": method}))


def _explained_user(rng: Random, writer: Writer, number: int) -> dict[str, Any]:
    given = user(rng, writer, 80 if number % 25 == 2 else rng.randint(1, 12))
    if "candidates" not in given and "catalogue" not in given and rng.random() < 0.5:
        given["target"] = rng.choice(SHOP)
    elif "candidates" in given and rng.random() < 0.5:
        given["target"] = next((item["item_id"] for item in given["candidates"] if "item_id" in item), None)
    return given
