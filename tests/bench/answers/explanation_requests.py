"""Valid explanation requests: every method, attention maps as JSON, and attention maps as NPZ files."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.bench.answers.phrases import Writer
from tests.bench.answers.ranking_requests import SHOP, user
from tests.bench.answers.requests import Request, generate, post
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
    return generate("explain sentiment", count, _explain_sentiment)


def _explain_sentiment(rng: Random, writer: Writer, number: int) -> Request:
    fields, accept = _method_fields(rng, _METHODS, number)
    if number % 5 == 0:
        inputs: Any = [sentiment_input(rng, writer) for _ in range(rng.randint(1, 4))]
        inputs += [" "] if rng.random() < 0.3 else []
        inputs = inputs[:4]
    else:
        inputs = writer.long(6) if number % 17 == 1 else sentiment_input(rng, writer)
    body = {"inputs": inputs} | fields
    if rng.random() < 0.4:
        body["target"] = rng.choice(("negative", "neutral", "positive", None))
    return post("/v1/explain/sentiment", body, **accept)


def intent_explanations(count: int) -> list[Request]:
    return generate("explain intent", count, _explain_intent)


def _explain_intent(rng: Random, writer: Writer, number: int) -> Request:
    fields, accept = _method_fields(rng, _METHODS, number)
    many = number % 5 == 0
    body = {
        "inputs": [intent_input(rng, writer) for _ in range(3)] if many else intent_input(rng, writer),
    } | fields
    label_set = (*LABEL_SETS, None)[number % 6]
    if label_set is not None:
        body["labels"] = label_set
    if label_set == "banking77" and rng.random() < 0.6:
        body["target"] = rng.choice(("card_arrival", "change_pin", "lost_or_stolen_card"))
    return post("/v1/explain/intent", body, **accept)


def reply_explanations(count: int) -> list[Request]:
    return generate("explain replies", count, _explain_replies)


def _explain_replies(rng: Random, writer: Writer, number: int) -> Request:
    fields, accept = _method_fields(rng, _REPLY_METHODS, number)
    body = replies_choice(rng, writer, rng.choice((1, 1, 2, 4)), rng.choice((1, 3, 6))) | fields
    if rng.random() < 0.4:
        body["target"] = 0
    return post("/v1/explain/replies", body, **accept)


def _method_fields(rng: Random, methods: tuple[str | None, ...], number: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the fields of a method or, in a quarter of the cases, of attention maps, half of them as NPZ."""
    if number % 4 == 3:
        return {"method": "attention"} | rng.choice(_MAPS), {"accept": NPZ} if rng.random() < 0.5 else {}
    method = methods[number % len(methods)]
    return ({} if method is None else {"method": method}), {"accept": NPZ} if rng.random() < 0.05 else {}


def recommendation_explanations(count: int) -> list[Request]:
    return generate("explain recommend", count, _explain_recommend)


def _explain_recommend(rng: Random, writer: Writer, number: int) -> Request:
    if number % 6 == 0:
        inputs: Any = [_explained_user(rng, writer, number) for _ in range(rng.randint(1, 4))]
    else:
        inputs = _explained_user(rng, writer, number)
    method = _HISTORY_METHODS[number % len(_HISTORY_METHODS)]
    return post("/v1/explain/recommend", {"inputs": inputs} | ({} if method is None else {"method": method}))


def _explained_user(rng: Random, writer: Writer, number: int) -> dict[str, Any]:
    body = user(rng, writer, 80 if number % 25 == 2 else rng.randint(1, 12))
    if "candidates" not in body and "catalogue" not in body and rng.random() < 0.5:
        body["target"] = rng.choice(SHOP)
    elif "candidates" in body and rng.random() < 0.5:
        body["target"] = next((item["item_id"] for item in body["candidates"] if "item_id" in item), None)
    return body
