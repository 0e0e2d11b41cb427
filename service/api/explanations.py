"""`/v1/explain/sentiment`: texts in; out for each its label and which words speak for it, or where the model looks.

And what every route of explanations shares: limits, maps as JSON or as a file of arrays.
"""

import asyncio
import io
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from fastapi import Request, Response

from service.errors import ExplanationTooLarge, NotFound
from service.explanation.request import Attention, ExplanationBatch, ExplanationRequest, TextExplanation
from service.explanation.worker import ExplanationWorker
from service.http.responses import milliseconds
from service.inference.predictor import Predictor
from service.schemas.explain import MAX_EXPLAINED, MAX_MAP_NUMBERS, MAX_MAPPED, MAX_PACKED_NUMBERS, ExplainOptions

if TYPE_CHECKING:
    from models.explain.explainer import WordAttribution


NPZ = "application/x-npz"


def require_worker(explaining: ExplanationWorker | None, task: str | None = None) -> ExplanationWorker:
    """Raises NotFound where nothing is explained, or no texts of the task."""
    if explaining is None or (task is not None and not explaining.explains(task)):
        raise NotFound("This service explains nothing here: its gateways call this model elsewhere and hold none.")
    return explaining


def accepts_npz(given: Request) -> bool:
    """Whether maps are to come as a file of arrays."""
    return NPZ in given.headers.get("accept", "")


def parse_request(request: ExplainOptions, items: int, packed: bool, pointer: str = "/inputs") -> ExplanationRequest:
    if items > MAX_EXPLAINED:
        raise ExplanationTooLarge(f"At most {MAX_EXPLAINED} texts are explained in one request.", pointer="/inputs")
    method = None if request.method == "auto" else request.method
    if method != "attention":
        return ExplanationRequest(method)
    if items > MAX_MAPPED:
        raise ExplanationTooLarge(
            f"Attention is shown for at most {MAX_MAPPED} texts in one request.", pointer="/inputs"
        )
    heads = tuple(request.heads) if isinstance(request.heads, list) else None
    most = MAX_PACKED_NUMBERS if packed else MAX_MAP_NUMBERS
    return ExplanationRequest(method, tuple(request.layers or ()), heads, request.reduce, most, pointer)


async def explanation_response(
    given: Request, predictor: Predictor, results: list[dict[str, Any]], found: ExplanationBatch[Any], **more: Any
) -> Response:
    """Plain values as JSON; maps as a file of arrays where the caller takes one."""
    answer = {
        "model": predictor.bundle.name,
        "version": predictor.bundle.version,
        "results": results,
        **more,
        "timings_ms": {"queue": milliseconds(found.queue_s), "explain": milliseconds(found.explain_s)},
    }
    if accepts_npz(given) and any("attention" in one for one in results):
        return Response(await asyncio.to_thread(partial(to_npz, answer)), media_type=NPZ)
    return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def to_npz(answer: dict[str, Any]) -> bytes:
    """An npz file: `answer` is the JSON answer with the name of an array wherever that would have weights."""
    arrays = {}
    for number, one in enumerate(answer["results"]):
        if "attention" in one:
            arrays[f"weights_{number}"] = one["attention"]["weights"]
            one["attention"]["weights"] = f"weights_{number}"
    file = io.BytesIO()
    np.savez(file, answer=np.asarray(orjson.dumps(answer).decode()), **arrays)
    return file.getvalue()


def method_fields(outcome: TextExplanation) -> dict[str, Any]:
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


def turn_weights(texts: Sequence[str], outcome: TextExplanation) -> dict[str, Any]:
    """The TurnWeights of those of these turns that were read."""
    dropped = len(texts) - outcome.turns
    shown = [
        {
            "turn": place,
            "weight": passage.weight,
            "words": [word_weight(texts[place], word) for word in passage.words],
            "read_span": {"start": passage.read_span[0], "end": passage.read_span[1]},
        }
        for place, passage in enumerate(outcome.explanation.segments, dropped)
    ]
    return {"turns": shown, "turns_dropped": dropped}


def word_weight(text: str, word: "WordAttribution") -> dict[str, Any]:
    return {"text": text[word.start : word.end], "start": word.start, "end": word.end, "weight": word.weight}
