"""`/v1/explain/sentiment`: texts in; out for each its label and which words speak for it, or where the model looks.

And what every route of explanations shares: limits, maps as JSON or as a file of arrays.
"""

# No `from __future__ import annotations` here: FastAPI could not resolve annotations that name a local dependency.

import asyncio
import io
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response

from models.text.language import is_readable
from service.bodies import JsonBody
from service.errors import InvalidRequest, NotFound, Problem, TooMuchToExplain
from service.explained import Ask, Attention, Explained, Explanations, Outcome, Wanted
from service.explaining import Explaining
from service.predictor import Predictor
from service.routes import add_hot_route, deadline_s, failed, id_of, listed, milliseconds, refuse_if_none_answered
from service.schemas import SentimentItem
from service.schemas_explain import (
    MAX_EXPLAINED,
    MAX_MAP_NUMBERS,
    MAX_MAPPED,
    MAX_PACKED_NUMBERS,
    ExplainRequest,
    ExplainResponse,
    HowExplained,
)
from service.settings import Settings

if TYPE_CHECKING:  # at run time only in the thread that explains
    from models.explain.explainer import Weight

NPZ = "application/x-npz"


def add_explain(app: FastAPI, predictor: Predictor, explaining: Explaining | None, settings: Settings) -> None:
    body = JsonBody(ExplainRequest, settings.max_body_bytes, settings.request_timeout_s)

    async def explain(given: Request) -> Response:
        """Which words the answer to a text, or to each of up to 16, rests on; or the attention that it came from."""
        due_s = deadline_s(given, settings)
        request = await body.read(given)
        inputs = listed(request.inputs)
        wanted = wanted_of(request, len(inputs), packed(given))
        asks = [_ask(one, request.target) for one in inputs]
        found = await explainer_of(explaining, "sentiment").explain("sentiment", asks, wanted, due_s)
        refuse_if_none_answered(found.outcomes, request.inputs)
        return await response(
            given, predictor, [_result(*one) for one in zip(inputs, found.outcomes, strict=True)], found
        )

    add_hot_route(app, "/v1/explain/sentiment", explain, ExplainRequest, ExplainResponse, 404)


def explainer_of(explaining: Explaining | None, task: str | None = None) -> Explaining:
    """Raises NotFound where nothing is explained, or no texts of the task."""
    if explaining is None or (task is not None and not explaining.explains(task)):
        raise NotFound("This service explains nothing here: its gateways call this model elsewhere and hold none.")
    return explaining


def packed(given: Request) -> bool:
    """Whether maps are to come as a file of arrays."""
    return NPZ in given.headers.get("accept", "")


def wanted_of(request: HowExplained, items: int, packed: bool, pointer: str = "/inputs") -> Wanted:
    if items > MAX_EXPLAINED:
        raise TooMuchToExplain(f"At most {MAX_EXPLAINED} texts are explained in one request.", pointer="/inputs")
    method = None if request.method == "auto" else request.method
    if method != "attention":
        return Wanted(method)
    if items > MAX_MAPPED:
        raise TooMuchToExplain(f"Attention is shown for at most {MAX_MAPPED} texts in one request.", pointer="/inputs")
    heads = tuple(request.heads) if isinstance(request.heads, list) else None
    most = MAX_PACKED_NUMBERS if packed else MAX_MAP_NUMBERS
    return Wanted(method, tuple(request.layers or ()), heads, request.reduce, most, pointer)


async def response(
    given: Request, predictor: Predictor, results: list[dict[str, Any]], found: Explanations[Any], **more: Any
) -> Response:
    """Plain values as JSON; maps as a file of arrays where the caller takes one."""
    answer = {
        "model": predictor.bundle.name,
        "version": predictor.bundle.version,
        "results": results,
        **more,
        "timings_ms": {"queue": milliseconds(found.queue_s), "explain": milliseconds(found.explain_s)},
    }
    if packed(given) and any("attention" in one for one in results):
        return Response(await asyncio.to_thread(partial(pack, answer)), media_type=NPZ)
    return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def pack(answer: dict[str, Any]) -> bytes:
    """An npz file: `answer` is the JSON answer with the name of an array wherever that would have weights."""
    arrays = {}
    for number, one in enumerate(answer["results"]):
        if "attention" in one:
            arrays[f"weights_{number}"] = one["attention"]["weights"]
            one["attention"]["weights"] = f"weights_{number}"
    file = io.BytesIO()
    np.savez(file, answer=np.asarray(orjson.dumps(answer).decode()), **arrays)
    return file.getvalue()


def how(outcome: Explained) -> dict[str, Any]:
    """What every result says of how it was explained."""
    found, attention = outcome.explanation, outcome.attention
    return {
        "method": found.method,
        "signed": found.signed,
        **({"attention": _maps(attention)} if attention is not None else {}),
        "tokens": outcome.tokens,
        "truncated": outcome.truncated,
    }


def _maps(attention: Attention) -> dict[str, Any]:
    return {
        "model_layers": attention.model_layers,
        "model_heads": attention.model_heads,
        "tokens": attention.tokens,
        "layers": attention.layers,
        "heads": attention.heads,
        "reduce": attention.reduce,
        "weights": attention.weights,
    }


def _ask(given: str | SentimentItem, target: str | None) -> Ask | Problem:
    text, entity = (given, None) if isinstance(given, str) else (given.text, given.entity)
    if entity is not None and not is_readable(entity):
        return InvalidRequest("The entity is empty.", pointer="/entity")
    return lambda explainer: explainer.text(text, entity, target)


def _result(given: str | SentimentItem, outcome: Outcome) -> dict[str, Any]:
    """An ExplainResult, or a FailedItem."""
    if isinstance(outcome, Problem):
        return failed(outcome, given)
    text = given if isinstance(given, str) else given.text
    found = outcome.explanation
    (passage,) = found.passages
    return {
        "label": max(found.scores, key=found.scores.__getitem__),
        "scores": found.scores,
        "target": found.target,
        "words": [_word(text, word) | {"named": word.named} for word in passage.words],
        "read": {"start": passage.read[0], "end": passage.read[1]},
        **how(outcome),
        "id": id_of(given),
    }


def turns_of(texts: Sequence[str], outcome: Explained) -> dict[str, Any]:
    """The TurnWeights of those of these turns that were read."""
    dropped = len(texts) - outcome.turns
    shown = [
        {
            "turn": place,
            "weight": passage.weight,
            "words": [_word(texts[place], word) for word in passage.words],
            "read": {"start": passage.read[0], "end": passage.read[1]},
        }
        for place, passage in enumerate(outcome.explanation.passages, dropped)
    ]
    return {"turns": shown, "turns_dropped": dropped}


def _word(text: str, word: "Weight") -> dict[str, Any]:
    return {"text": text[word.start : word.end], "start": word.start, "end": word.end, "weight": word.weight}
