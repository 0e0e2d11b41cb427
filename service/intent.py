"""`/v1/intent` and `/v1/replies`: what a customer wants at the newest turn of a dialogue, and which reply fits it.

The model gives a vector for each dialogue or reply; heads and reply sets, which the shelf holds, are applied here. So
requests for different intents share batches, and identical ones their answers.
"""

# No `from __future__ import annotations` here: FastAPI could not resolve annotations that name a local dependency.

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request, Response
from numpy.typing import NDArray

from models.prediction.intent_head import Head, judge
from models.text.tokenizer import Turn
from service.bodies import JsonBody
from service.errors import EmptyText, NotFound, Problem
from service.predictor import Answered, Embedded, Item, Predictor
from service.routes import add_hot_route, answered, deadline_s, failed, id_of, listed, refuse_if_none_answered
from service.schemas_intent import (
    DialogueTurn,
    IntentItem,
    IntentRequest,
    IntentResponse,
    RepliesRequest,
    RepliesResponse,
)
from service.settings import Settings
from service.shelf import Shelf

_INLINE_DIALOGUES = 16
_INLINE_REPLIES = 2_000

Result = TypeVar("Result")


def add_intent(app: FastAPI, predictor: Predictor, shelf: Shelf, settings: Settings) -> None:
    body = JsonBody(IntentRequest, settings.max_body_bytes, settings.request_timeout_s)

    async def intent(given: Request) -> Response:
        """What a customer wants at the newest turn of a dialogue, or of up to 256, and whether it is in scope."""
        due_s = deadline_s(given, settings)
        request = await body.read(given)
        head = named(shelf.heads, request.labels or settings.labels, "/labels", "label set")
        inputs = listed(request.inputs)
        items, kept = zip(*map(item_of, inputs), strict=True)
        answer = await predictor.predict(items, request.truncate, due_s)
        refuse_if_none_answered(answer.outcomes, request.inputs)
        threshold = head.threshold if request.threshold is None else request.threshold
        work = partial(_results, head, inputs, kept, answer.outcomes, request.top_k, threshold)
        results = await _aside(work, len(inputs) > _INLINE_DIALOGUES)
        return answered(predictor, results, answer.timings, labels=head.name)

    add_hot_route(app, "/v1/intent", intent, IntentRequest, IntentResponse, 404)


def add_replies(app: FastAPI, predictor: Predictor, shelf: Shelf, settings: Settings) -> None:
    body = JsonBody(RepliesRequest, settings.max_body_bytes, settings.request_timeout_s)

    async def replies(given: Request) -> Response:
        """The candidates, or the replies of a set, that fit best after a dialogue."""
        due_s = deadline_s(given, settings)
        request = await body.read(given)
        turns = turns_of(request.turns)
        items = [Item(turns[-1].text, before=turns[:-1])]
        candidates = request.candidates or ()
        chosen = request.reply_set and named(shelf.reply_sets, request.reply_set, "/reply_set", "reply set")
        items += [Item(text) for text in candidates]
        answer = await predictor.predict(items, True, due_s)
        dialogue, *others = (_embedded(outcome, number) for number, outcome in enumerate(answer.outcomes))
        if chosen:
            texts: Sequence[str] = chosen.texts
            placed = chosen.placed
        else:
            texts = candidates
            placed = shelf.ranker.place(np.stack([one.vector for one in others]))
        work = partial(shelf.ranker.scores, dialogue.vector, placed)
        scores = await _aside(work, len(placed) > _INLINE_REPLIES)
        best = np.argsort(-scores, kind="stable")[: request.top_k].tolist()
        results = [{"index": place, "text": texts[place], "score": float(scores[place])} for place in best]
        least = shelf.ranker.least if request.threshold is None else request.threshold
        return answered(
            predictor,
            results,
            answer.timings,
            no_good_reply=results[0]["score"] < least,
            turns_used=dialogue.turns,
            turns_dropped=len(turns) - dialogue.turns,
            truncated=dialogue.truncated,
        )

    add_hot_route(app, "/v1/replies", replies, RepliesRequest, RepliesResponse, 404)


async def _aside(work: Callable[[], Result], large: bool) -> Result:
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
    return Item(turns[-1].text, before=turns[:-1]), len(turns)


def turns_of(given: Sequence[DialogueTurn]) -> tuple[Turn, ...]:
    return tuple(Turn(turn.speaker, turn.text) for turn in given)


def _results(
    head: Head,
    inputs: Sequence[Any],
    kept: Sequence[int],
    outcomes: Sequence[Answered | Problem],
    top_k: int,
    threshold: float,
) -> list[dict[str, Any]]:
    vectors = [outcome.vector for outcome in outcomes if isinstance(outcome, Embedded)]
    verdicts = judge(head, np.stack(vectors))
    judged = iter(zip(verdicts.confidences, verdicts.outside.tolist(), strict=True))
    results = []
    for given, turns, outcome in zip(inputs, kept, outcomes, strict=True):
        if isinstance(outcome, Problem):
            results.append(failed(outcome, given))
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
    head: Head, confidences: NDArray[np.float64], outside: float, top_k: int, threshold: float
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


def _embedded(outcome: Answered | Problem, number: int) -> Embedded:
    """Of the dialogue, number 0, or of a candidate; raises its problem as that of the request."""
    if isinstance(outcome, EmptyText):
        raise EmptyText(outcome.detail, pointer="/turns" if number == 0 else f"/candidates/{number - 1}")
    if isinstance(outcome, Problem):
        raise outcome
    assert isinstance(outcome, Embedded)
    return outcome


def named(shelf: Any, name: str, pointer: str, kind: str) -> Any:
    if name not in shelf:
        known = ", ".join(sorted(shelf)) or "none"
        raise NotFound(f"There is no {kind} of this name; there are: {known}.", pointer=pointer)
    return shelf[name]
