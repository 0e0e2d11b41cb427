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

from service.errors import NotFound, TooMuchToExplain
from service.explanation.request import Attention, Explained, Explanations, Wanted
from service.explanation.worker import Explaining
from service.http.responses import milliseconds
from service.inference.predictor import Predictor
from service.schemas.explain import MAX_EXPLAINED, MAX_MAP_NUMBERS, MAX_MAPPED, MAX_PACKED_NUMBERS, HowExplained

if TYPE_CHECKING:
    from models.explain.explainer import Weight


NPZ = "application/x-npz"


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
