"""`/v1/intent` and `/v1/replies`: what a customer wants at the newest turn of a dialogue, and which reply fits it.

The model gives a vector for each dialogue or reply; heads and reply sets, which the shelf holds, are applied here. So
requests for different intents share batches, and identical ones their answers.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request, Response
from numpy.typing import NDArray

from models.prediction.intent_head import IntentHead, predict_intents
from models.text.tokenizer import Turn
from service.errors import NotFound, Problem
from service.http.body import JsonBody
from service.http.hot_route import add_hot_route, deadline_s
from service.http.responses import as_list, failed_item, id_of, raise_if_all_failed, results_response
from service.inference.predictor import Embedding, Item, Prediction, Predictor
from service.registry.heads import HeadRegistry
from service.schemas.intent import DialogueTurn, IntentItem, IntentRequest, IntentResponse
from service.settings import Settings

_INLINE_DIALOGUES = 16
MAX_INLINE_REPLIES = 2_000

Result = TypeVar("Result")


def add_intent(app: FastAPI, predictor: Predictor, shelf: HeadRegistry, settings: Settings) -> None:
    body = JsonBody(IntentRequest, settings.max_body_bytes, settings.request_timeout_s)

    async def intent(given: Request) -> Response:
        """What a customer wants at the newest turn of a dialogue, or of up to 256, and whether it is in scope."""
        due_s = deadline_s(given, settings)
        request = await body.read(given)
        head = find_by_name(shelf.heads, request.label_set or settings.label_set, "/label_set", "label set")
        inputs = as_list(request.inputs)
        items, kept = zip(*map(item_of, inputs), strict=True)
        answer = await predictor.predict(items, request.truncate, due_s)
        raise_if_all_failed(answer.outcomes, request.inputs)
        threshold = head.threshold if request.threshold is None else request.threshold
        work = partial(_results, head, inputs, kept, answer.outcomes, request.top_k, threshold)
        results = await run_in_thread_if(work, len(inputs) > _INLINE_DIALOGUES)
        return results_response(predictor, results, answer.timings, label_set=head.name)

    add_hot_route(app, "/v1/intent", intent, IntentRequest, IntentResponse, 404)


async def run_in_thread_if(work: Callable[[], Result], large: bool) -> Result:
    """What is large would hold up the event loop for milliseconds."""
    return await asyncio.to_thread(work) if large else work()


def item_of(given: str | IntentItem) -> tuple[Item, int]:
    """The item of an input, and how many turns it has up to its customer's newest."""
    if isinstance(given, str):
        return Item(given), 1
    if given.text is not None:
        return Item(given.text), 1
    assert given.turns is not None
    newest = max(number for number, turn in enumerate(given.turns) if turn.speaker == "customer")
    turns = turns_of(given.turns[: newest + 1])
    return Item(turns[-1].text, context=turns[:-1]), len(turns)


def turns_of(given: Sequence[DialogueTurn]) -> tuple[Turn, ...]:
    return tuple(Turn(turn.speaker, turn.text) for turn in given)


def _results(
    head: IntentHead,
    inputs: Sequence[Any],
    kept: Sequence[int],
    outcomes: Sequence[Prediction | Problem],
    top_k: int,
    threshold: float,
) -> list[dict[str, Any]]:
    vectors = [outcome.vector for outcome in outcomes if isinstance(outcome, Embedding)]
    verdicts = predict_intents(head, np.stack(vectors))
    judged = iter(zip(verdicts.confidences, verdicts.out_of_scope_scores.tolist(), strict=True))
    results = []
    for given, turns, outcome in zip(inputs, kept, outcomes, strict=True):
        if isinstance(outcome, Problem):
            results.append(failed_item(outcome, given))
            continue
        confidences, outside = next(judged)
        results.append(
            {
                **_verdict(head, confidences, outside, top_k, threshold),
                "turns_used": outcome.turns,
                "turns_dropped": turns - outcome.turns,
                "tokens": outcome.tokens,
                "truncated": outcome.truncated,
                "id": id_of(given),
            }
        )
    return results


def _verdict(
    head: IntentHead, confidences: NDArray[np.float64], outside: float, top_k: int, threshold: float
) -> dict[str, Any]:
    order = np.argsort(-confidences, kind="stable")[:top_k].tolist()
    ranking = [{"intent": head.labels[place], "confidence": float(confidences[place])} for place in order]
    out_of_scope = outside > threshold
    return {
        "intent": None if out_of_scope else ranking[0]["intent"],
        "confidence": ranking[0]["confidence"],
        "out_of_scope": out_of_scope,
        "out_of_scope_score": outside,
        "ranking": ranking,
    }


def find_by_name(shelf: Any, name: str, pointer: str, kind: str) -> Any:
    if name not in shelf:
        known = ", ".join(sorted(shelf)) or "none"
        raise NotFound(f"There is no {kind} of this name; there are: {known}.", pointer=pointer)
    return shelf[name]
