"""Shared parts of the routes of explanations: limits, weights as JSON, and attention maps as JSON or arrays."""

import asyncio
import io
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from fastapi import Request, Response

from models.text.language import name_language
from service.errors import ExplanationTooLarge, NotFound
from service.explanation.request import Attention, ExplanationBatch, ExplanationRequest, TextExplanation
from service.explanation.worker import ExplanationWorker
from service.http.responses import language_fields, milliseconds
from service.inference.predictor import Predictor
from service.schemas.explain import MAX_EXPLAINED, MAX_MAP_NUMBERS, MAX_MAPPED, MAX_PACKED_NUMBERS, ExplainOptions

if TYPE_CHECKING:
    from models.explain.explainer import WordAttribution


NPZ = "application/x-npz"
EXPLANATIONS = "Explanations"
"""The group of these routes in the OpenAPI document."""


def require_worker(explanations: ExplanationWorker | None, task: str | None = None) -> ExplanationWorker:
    """Return the worker; raise NotFound if it does not exist or cannot explain texts of the task."""
    if explanations is None or (task is not None and not explanations.explains(task)):
        raise NotFound("This service has no explanations here, because its gateways do not hold this model.")
    return explanations


def accepts_npz(request: Request) -> bool:
    """Return whether the caller accepts a file of arrays."""
    return NPZ in request.headers.get("accept", "")


def parse_request(body: ExplainOptions, items: int, npz: bool, pointer: str = "/inputs") -> ExplanationRequest:
    """Return the method and maps of a request; raise ExplanationTooLarge for too many items."""
    if items > MAX_EXPLAINED:
        raise ExplanationTooLarge(f"A request can explain at most {MAX_EXPLAINED} texts.", pointer="/inputs")
    method = None if body.method == "auto" else body.method
    if method != "attention":
        return ExplanationRequest(method)
    if items > MAX_MAPPED:
        raise ExplanationTooLarge(f"A request can show attention for at most {MAX_MAPPED} texts.", pointer="/inputs")
    heads = tuple(body.heads) if isinstance(body.heads, list) else None
    max_numbers = MAX_PACKED_NUMBERS if npz else MAX_MAP_NUMBERS
    return ExplanationRequest(method, tuple(body.layers or ()), heads, body.reduce, max_numbers, pointer)


async def explanation_response(
    request: Request, predictor: Predictor, results: list[dict[str, Any]], batch: ExplanationBatch[Any], **more: Any
) -> Response:
    """Return the results as JSON, or as a file of arrays if there are maps and the caller accepts a file."""
    answer = {
        "model": predictor.bundle.name,
        "version": predictor.bundle.version,
        "results": results,
        **more,
        "timings_ms": {"queue": milliseconds(batch.queue_s), "explain": milliseconds(batch.explain_s)},
    }
    if accepts_npz(request) and any("attention" in result for result in results):
        return Response(await asyncio.to_thread(partial(to_npz, answer)), media_type=NPZ)
    return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def to_npz(answer: dict[str, Any]) -> bytes:
    """Return an npz file. Its `answer` is the JSON answer, with names of arrays in place of the weights."""
    arrays = {}
    for index, result in enumerate(answer["results"]):
        if "attention" in result:
            arrays[f"weights_{index}"] = result["attention"]["weights"]
            result["attention"]["weights"] = f"weights_{index}"
    file = io.BytesIO()
    np.savez(file, answer=np.asarray(orjson.dumps(answer).decode()), **arrays)
    return file.getvalue()


def method_fields(outcome: TextExplanation, text: str) -> dict[str, Any]:
    """Return the `ExplanationFields` of a result for a text, or for the newest turn of a dialogue."""
    explanation, attention = outcome.explanation, outcome.attention
    return {
        "method": explanation.method,
        "signed": explanation.signed,
        **({"attention": _maps(attention)} if attention is not None else {}),
        "tokens": outcome.tokens,
        "truncated": outcome.truncated,
        **language_fields(name_language(text)),
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
    """Return the `TurnWeights` of the turns that the model read."""
    dropped = len(texts) - outcome.turns
    turns = [
        {
            "turn": index,
            "weight": segment.weight,
            "words": [word_weight(texts[index], word) for word in segment.words],
            "read_span": {"start": segment.read_span[0], "end": segment.read_span[1]},
        }
        for index, segment in enumerate(outcome.explanation.segments, dropped)
    ]
    return {"turns": turns, "turns_dropped": dropped}


def word_weight(text: str, word: "WordAttribution") -> dict[str, Any]:
    """Return the `TurnWord` of a word, which is also the start of a `WordWeight`."""
    return {"text": text[word.start : word.end], "start": word.start, "end": word.end, "weight": word.weight}
