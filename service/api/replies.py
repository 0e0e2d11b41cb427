"""/v1/replies."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from fastapi import FastAPI, Request, Response

from service.api.intent import MAX_INLINE_REPLIES, find_by_name, run_in_thread_if, turns_of
from service.errors import EmptyText, Problem
from service.http.body import JsonBody
from service.http.hot_route import add_hot_route, deadline_s
from service.http.responses import results_response
from service.inference.predictor import Embedding, Item, Prediction, Predictor
from service.registry.heads import HeadRegistry
from service.schemas.intent import RepliesRequest, RepliesResponse
from service.settings import Settings


def add_replies(app: FastAPI, predictor: Predictor, shelf: HeadRegistry, settings: Settings) -> None:
    body = JsonBody(RepliesRequest, settings.max_body_bytes, settings.request_timeout_s)

    async def replies(given: Request) -> Response:
        """The candidates, or the replies of a set, that fit best after a dialogue."""
        due_s = deadline_s(given, settings)
        request = await body.read(given)
        turns = turns_of(request.turns)
        items = [Item(turns[-1].text, context=turns[:-1])]
        candidates = request.candidates or ()
        chosen = request.reply_set and find_by_name(shelf.reply_sets, request.reply_set, "/reply_set", "reply set")
        items += [Item(text) for text in candidates]
        answer = await predictor.predict(items, True, due_s)
        dialogue, *others = (_embedded(outcome, number) for number, outcome in enumerate(answer.outcomes))
        if chosen:
            texts: Sequence[str] = chosen.texts
            placed = chosen.projected
        else:
            texts = candidates
            placed = shelf.ranker.project_replies(np.stack([one.vector for one in others]))
        work = partial(shelf.ranker.score_replies, dialogue.vector, placed)
        scores = await run_in_thread_if(work, len(placed) > MAX_INLINE_REPLIES)
        best = np.argsort(-scores, kind="stable")[: request.top_k].tolist()
        results = [{"index": place, "text": texts[place], "score": float(scores[place])} for place in best]
        least = shelf.ranker.min_score if request.threshold is None else request.threshold
        return results_response(
            predictor,
            results,
            answer.timings,
            no_good_reply=results[0]["score"] < least,
            turns_used=dialogue.turns,
            turns_dropped=len(turns) - dialogue.turns,
            truncated=dialogue.truncated,
        )

    add_hot_route(app, "/v1/replies", replies, RepliesRequest, RepliesResponse, 404)


def _embedded(outcome: Prediction | Problem, number: int) -> Embedding:
    """Of the dialogue, number 0, or of a candidate; raises its problem as that of the request."""
    if isinstance(outcome, EmptyText):
        raise EmptyText(outcome.detail, pointer="/turns" if number == 0 else f"/candidates/{number - 1}")
    if isinstance(outcome, Problem):
        raise outcome
    assert isinstance(outcome, Embedding)
    return outcome
