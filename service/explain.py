"""`/v1/explain/sentiment`: texts in; out for each its label and which words speak for it, or where the model looks."""

# No `from __future__ import annotations` here: FastAPI could not resolve annotations that name a local dependency.

from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response

from service.bodies import JsonBody
from service.errors import NotFound, Problem, TooMuchToExplain
from service.explaining import Attention, Explained, Explaining, Wanted
from service.predictor import Predictor
from service.routes import add_hot_route, deadline_s, failed, id_of, listed, milliseconds, refuse_if_none_answered
from service.schemas import (
    MAX_EXPLAINED,
    MAX_MAP_NUMBERS,
    MAX_MAPPED,
    MAX_MAPPED_TOKENS,
    ExplainRequest,
    ExplainResponse,
    SentimentItem,
)
from service.sentiment import item_of
from service.settings import Settings


def add_explain(app: FastAPI, predictor: Predictor, explaining: Explaining | None, settings: Settings) -> None:
    body = JsonBody(ExplainRequest, settings.max_body_bytes, settings.request_timeout_s)

    async def explain(given: Request) -> Response:
        """Which words the answer to a text, or to each of up to 16, rests on; or the attention that it came from."""
        due_s = deadline_s(given, settings)
        request = await body.read(given)
        if explaining is None:
            raise NotFound(
                "This service explains nothing: its gateways call models elsewhere and hold none themselves."
            )
        inputs = listed(request.inputs)
        wanted = wanted_of(request, len(inputs))
        found = await explaining.explain([item_of(one) for one in inputs], wanted, due_s)
        refuse_if_none_answered(found.outcomes, request.inputs)
        answer = {
            "model": predictor.bundle.name,
            "version": predictor.bundle.version,
            "results": results_of(inputs, found.outcomes),
            "timings_ms": {"queue": milliseconds(found.queue_s), "explain": milliseconds(found.explain_s)},
        }
        return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

    add_hot_route(app, "/v1/explain/sentiment", explain, ExplainRequest, ExplainResponse, 404)


def wanted_of(request: ExplainRequest, texts: int) -> Wanted:
    if texts > MAX_EXPLAINED:
        raise TooMuchToExplain(f"At most {MAX_EXPLAINED} texts are explained in one request.", pointer="/inputs")
    method = None if request.method == "auto" else request.method
    if request.layers is None:
        return Wanted(method, request.target)
    if texts > MAX_MAPPED:
        raise TooMuchToExplain(f"Attention is shown for at most {MAX_MAPPED} texts in one request.", pointer="/inputs")
    heads = tuple(request.heads) if isinstance(request.heads, list) else None
    return Wanted(method, request.target, tuple(request.layers), heads, MAX_MAPPED_TOKENS, MAX_MAP_NUMBERS)


def results_of(inputs: Sequence[str | SentimentItem], outcomes: Sequence[Explained | Problem]) -> list[dict[str, Any]]:
    return [
        failed(outcome, given) if isinstance(outcome, Problem) else result_of(given, outcome)
        for given, outcome in zip(inputs, outcomes, strict=True)
    ]


def result_of(given: str | SentimentItem, outcome: Explained) -> dict[str, Any]:
    """An ExplainResult."""
    text = given if isinstance(given, str) else given.text
    found = outcome.explanation
    return {
        "label": outcome.label,
        "scores": found.scores,
        "method": found.method,
        "signed": found.signed,
        "target": found.target,
        "words": [
            {
                "text": text[word.start : word.end],
                "start": word.start,
                "end": word.end,
                "weight": word.weight,
                "named": word.named,
            }
            for word in found.weights
        ],
        "read": {"start": found.read[0], "end": found.read[1]},
        **({"attention": _maps(outcome.attention)} if outcome.attention is not None else {}),
        "tokens": outcome.tokens,
        "truncated": outcome.truncated,
        "id": id_of(given),
    }


def _maps(attention: Attention) -> dict[str, Any]:
    return {
        "model_layers": attention.model_layers,
        "model_heads": attention.model_heads,
        "tokens": attention.tokens,
        "layers": attention.layers,
        "heads": attention.heads,
        "weights": attention.weights,
    }
