"""`/v1/intent`: what a customer wants at the newest turn of a dialogue.

The model returns a vector for each dialogue, and this module applies the head of a label set to it. So requests for
different label sets share batches, and identical dialogues share vectors.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request, Response
from numpy.typing import NDArray

from models.names import list_nearest
from models.prediction.intent_head import IntentHead, predict_intents
from models.text.tokenizer import Turn
from service.errors import NotFound, Problem
from service.http.body import JsonBody
from service.http.hot_route import add_hot_route, request_deadline_s
from service.http.openapi import Operation
from service.http.responses import (
    as_list,
    failed_item,
    fill_in,
    id_of,
    language_fields,
    results_response,
    settle_outcomes,
    valid_items,
)
from service.inference.predictor import Embedding, Item, Prediction, Predictor
from service.registry.heads import HeadRegistry
from service.schemas.intent import DialogueTurn, IntentItem, IntentRequest, IntentResponse
from service.settings import Settings

_INLINE_DIALOGUES = 16
MAX_INLINE_REPLIES = 2_000

Result = TypeVar("Result")


def add_intent(app: FastAPI, predictor: Predictor, registry: HeadRegistry, settings: Settings) -> None:
    """Add the route."""
    reader = JsonBody(IntentRequest, settings.max_body_bytes, settings.request_timeout_s)

    async def intent(request: Request) -> Response:
        """Classify what a customer wants at the newest turn of a dialogue, and whether that is in scope.

        `inputs` is a text, a dialogue, or a list of at most 256 of them. `label_set` names the intents.
        """
        deadline_s = request_deadline_s(request, settings)
        body = await reader.read(request)
        head = find_by_name(registry.heads, body.label_set or settings.label_set, "/label_set", "label set")
        inputs = as_list(body.inputs)
        items, turn_counts = zip(*map(item_of, valid_items(inputs)), strict=True)
        answer = await predictor.predict(items, body.truncate, deadline_s)
        outcomes = settle_outcomes(body.inputs, answer.outcomes)
        threshold = head.threshold if body.threshold is None else body.threshold
        work = partial(_results, head, inputs, fill_in(inputs, turn_counts), outcomes, body.top_k, threshold)
        results = await run_in_thread_if(work, len(inputs) > _INLINE_DIALOGUES)
        return results_response(predictor, results, answer.timings, label_set=head.name)

    summary = "Classify the intent of messages and dialogues"
    operation = Operation("classify_intent", "Intents and replies", summary, problems=(404,))
    add_hot_route(app, "/v1/intent", intent, IntentRequest, IntentResponse, operation)


async def run_in_thread_if(work: Callable[[], Result], large: bool) -> Result:
    """Run large work in a thread, because it would block the event loop for milliseconds."""
    return await asyncio.to_thread(work) if large else work()


def item_of(item: str | IntentItem) -> tuple[Item, int]:
    """Return an input as the item of a predictor, and the number of its turns up to the newest customer turn."""
    if isinstance(item, str):
        return Item(item), 1
    if item.text is not None:
        return Item(item.text), 1
    assert item.turns is not None
    newest = max(index for index, turn in enumerate(item.turns) if turn.speaker == "customer")
    turns = turns_of(item.turns[: newest + 1])
    return Item(turns[-1].text, context=turns[:-1]), len(turns)


def turns_of(turns: Sequence[DialogueTurn]) -> tuple[Turn, ...]:
    """Return turns of the wire as turns of the tokenizer."""
    return tuple(Turn(turn.speaker, turn.text) for turn in turns)


def _results(
    head: IntentHead,
    inputs: Sequence[Any],
    turn_counts: Sequence[int | Problem],
    outcomes: Sequence[Prediction | Problem],
    top_k: int,
    threshold: float,
) -> list[dict[str, Any]]:
    vectors = [outcome.vector for outcome in outcomes if isinstance(outcome, Embedding)]
    intents = predict_intents(head, np.stack(vectors))
    predictions = iter(zip(intents.confidences, intents.out_of_scope_scores.tolist(), strict=True))
    results = []
    for item, turn_count, outcome in zip(inputs, turn_counts, outcomes, strict=True):
        if isinstance(outcome, Problem):
            results.append(failed_item(outcome, item))
            continue
        assert not isinstance(turn_count, Problem)
        confidences, out_of_scope_score = next(predictions)
        results.append(
            {
                **_intent_fields(head, confidences, out_of_scope_score, top_k, threshold),
                "turns_used": outcome.turns,
                "turns_dropped": turn_count - outcome.turns,
                "tokens": outcome.tokens,
                "truncated": outcome.truncated,
                **language_fields(outcome.language),
                "id": id_of(item),
            }
        )
    return results


def _intent_fields(
    head: IntentHead, confidences: NDArray[np.float64], out_of_scope_score: float, top_k: int, threshold: float
) -> dict[str, Any]:
    order = np.argsort(-confidences, kind="stable")[:top_k].tolist()
    ranking = [{"intent": head.labels[index], "confidence": float(confidences[index])} for index in order]
    out_of_scope = out_of_scope_score > threshold
    return {
        "intent": None if out_of_scope else ranking[0]["intent"],
        "confidence": ranking[0]["confidence"],
        "out_of_scope": out_of_scope,
        "out_of_scope_score": out_of_scope_score,
        "ranking": ranking,
    }


def find_by_name(registered: Mapping[str, Result], name: str, pointer: str, kind: str) -> Result:
    """Return the head or reply set with this name; raise NotFound with the names that look like it."""
    if name not in registered:
        listed = list_nearest(registered, name) or "none"
        raise NotFound(f"There is no {kind} of this name; there are: {listed}.", pointer=pointer)
    return registered[name]
