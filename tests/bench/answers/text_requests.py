"""Valid requests for sentiment, intents and replies. Some inputs of a list may be invalid."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.bench.answers.phrases import Writer
from tests.bench.answers.requests import Request, generate, post, rng_of

LABEL_SETS = ("banking77", "clinc150", "dstc11", "multidogo", "smp_zh")
REPLY_SET = "answers-en"
REPLIES_IN_SET = 60

_UNREADABLE = ("", "   ", "\n\t", "\u200b")


def sentiment(count: int) -> list[Request]:
    return generate("sentiment", count, lambda *state: post("/v1/sentiment", _sentiment_body(*state)))


def _sentiment_body(rng: Random, writer: Writer, number: int) -> dict[str, Any]:
    """Return a body. Every tenth has a large list, every fifth a long text that may be refused or truncated."""
    body: dict[str, Any] = {}
    if number % 10 == 0:
        body["inputs"] = [sentiment_input(rng, writer) for _ in range(rng.choice((8, 17, 40)))]
    elif number % 5 == 1:
        body["inputs"] = [writer.long(rng.randint(10, 60)), sentiment_input(rng, writer)]
        body["truncate"] = rng.random() < 0.5
    elif rng.random() < 0.5:
        body["inputs"] = sentiment_input(rng, writer)
    else:
        body["inputs"] = [sentiment_input(rng, writer), *(_maybe_unreadable(rng, writer) for _ in range(3))]
    if rng.random() < 0.2:
        body["truncate"] = rng.random() < 0.7
    return body


def sentiment_input(rng: Random, writer: Writer) -> str | dict[str, Any]:
    kind = rng.random()
    if kind < 0.5:
        return writer.text()
    if kind < 0.7:
        return {"text": writer.text(), "id": f"n-{rng.randint(1, 999)}"}
    text, entity = writer.comparison()
    item: dict[str, Any] = {"text": text, "entity": entity if kind < 0.95 else "Nobody Ltd"}
    return item | ({"id": None} if rng.random() < 0.2 else {"id": "标-7"} if rng.random() < 0.3 else {})


def _maybe_unreadable(rng: Random, writer: Writer) -> str | dict[str, Any]:
    if rng.random() < 0.15:
        text = rng.choice(_UNREADABLE)
        return {"text": text, "id": "empty"} if rng.random() < 0.5 else text
    if rng.random() < 0.05:
        return {"text": writer.text(), "entity": " "}
    return sentiment_input(rng, writer)


def intent(count: int) -> list[Request]:
    return generate("intent", count, lambda *state: post("/v1/intent", _intent_body(*state)))


def _intent_body(rng: Random, writer: Writer, number: int) -> dict[str, Any]:
    """Return a body. The label sets, including the default, alternate."""
    label_set = (*LABEL_SETS, None)[number % 6]
    body: dict[str, Any] = {"inputs": _intent_inputs(rng, writer, number)}
    if label_set is not None or rng.random() < 0.2:
        body["labels"] = label_set
    if rng.random() < 0.4:
        body["top_k"] = rng.choice((1, 2, 5, 20, 100))
    if rng.random() < 0.3:
        body["threshold"] = rng.choice((0, 0.5, 0.8, 0.99, 1, None))
    if rng.random() < 0.2:
        body["truncate"] = rng.random() < 0.7
    return body


def _intent_inputs(rng: Random, writer: Writer, number: int) -> Any:
    if number % 12 == 0:
        return [intent_input(rng, writer) for _ in range(rng.choice((8, 17, 30)))]
    if number % 12 == 5:
        return [writer.long(30), {"turns": [*writer.dialogue(30), {"speaker": "customer", "text": writer.long(12)}]}]
    if number % 12 == 7:
        return [intent_input(rng, writer), rng.choice(_UNREADABLE), {"text": " ", "id": "empty"}]
    return intent_input(rng, writer)


def intent_input(rng: Random, writer: Writer) -> str | dict[str, Any]:
    kind = rng.random()
    if kind < 0.4:
        return writer.wish()
    item: dict[str, Any] = {"text": writer.wish()} if kind < 0.5 else {"turns": writer.dialogue(rng.randint(1, 9))}
    return item | ({"id": f"c-{rng.randint(1, 99)}"} if rng.random() < 0.5 else {})


def replies(count: int) -> list[Request]:
    return generate("replies", count, lambda *state: post("/v1/replies", _replies_body(*state)))


def _replies_body(rng: Random, writer: Writer, number: int) -> dict[str, Any]:
    turns = rng.choice((1, 2, 3, 5, 8, 40)) if number % 4 else 1
    body = replies_choice(rng, writer, turns, rng.choice((1, 2, 3, 5, 10, 30)))
    if rng.random() < 0.5:
        body["top_k"] = rng.choice((1, 2, 3, 50, 100))
    if rng.random() < 0.3:
        body["threshold"] = rng.choice((0, 0.1, 0.5, 1, None))
    if number % 25 == 0:
        body["turns"][-1] = {"speaker": "customer", "text": writer.long(15)}
    return body


def replies_choice(rng: Random, writer: Writer, turns: int, candidates: int) -> dict[str, Any]:
    """Return a dialogue with candidates or, in a third of the cases, with the reply set."""
    body: dict[str, Any] = {"turns": writer.dialogue(turns)}
    if rng.random() < 0.33:
        return body | {"reply_set": REPLY_SET}
    return body | {"candidates": writer.replies(candidates)}


def reply_set() -> list[str]:
    """Return the reply set that is added before the recording."""
    return Writer(rng_of("reply set")).replies(REPLIES_IN_SET)
