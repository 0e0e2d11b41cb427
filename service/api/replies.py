"""`/v1/replies`: candidates, or the replies of a set, ranked for a dialogue."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from fastapi import FastAPI, Request, Response

from service.api.intent import MAX_INLINE_REPLIES, find_by_name, run_in_thread_if, turns_of
from service.errors import EmptyText, Problem
from service.http.body import JsonBody
from service.http.hot_route import add_hot_route, request_deadline_s
from service.http.openapi import Operation
from service.http.responses import language_fields, results_response
from service.inference.predictor import Embedding, Item, Prediction, Predictor
from service.registry.heads import HeadRegistry
from service.schemas.intent import RepliesRequest, RepliesResponse
from service.settings import Settings


def add_replies(app: FastAPI, predictor: Predictor, registry: HeadRegistry, settings: Settings) -> None:
    """Add the route."""
    reader = JsonBody(RepliesRequest, settings.max_body_bytes, settings.request_timeout_s)
    ranker = registry.ranker

    async def replies(request: Request) -> Response:
        """Rank replies for a dialogue: candidates in the request, or a registered reply set.

        `no_good_reply` is true if even the best reply scores below the threshold.
        """
        deadline_s = request_deadline_s(request, settings)
        body = await reader.read(request)
        turns = turns_of(body.turns)
        candidates = body.candidates or ()
        reply_set = None
        if body.reply_set is not None:
            reply_set = find_by_name(registry.reply_sets, body.reply_set, "/reply_set", "reply set")
        items = [Item(turns[-1].text, context=turns[:-1]), *map(Item, candidates)]
        answer = await predictor.predict(items, True, deadline_s)
        dialogue, *embeddings = (_require_embedding(outcome, index) for index, outcome in enumerate(answer.outcomes))
        if reply_set is None:
            texts: Sequence[str] = candidates
            projected = ranker.project_replies(np.stack([embedding.vector for embedding in embeddings]))
        else:
            texts, projected = reply_set.texts, reply_set.projected
        work = partial(ranker.score_replies, dialogue.vector, projected)
        scores = await run_in_thread_if(work, len(projected) > MAX_INLINE_REPLIES)
        best = np.argsort(-scores, kind="stable")[: body.top_k].tolist()
        results = [{"index": index, "text": texts[index], "score": float(scores[index])} for index in best]
        min_score = ranker.min_score if body.threshold is None else body.threshold
        return results_response(
            predictor,
            results,
            answer.timings,
            no_good_reply=results[0]["score"] < min_score,
            turns_used=dialogue.turns,
            turns_dropped=len(turns) - dialogue.turns,
            truncated=dialogue.truncated,
            **language_fields(dialogue.language),
        )

    operation = Operation("rank_replies", "Intents and replies", "Rank replies for a dialogue", problems=(404,))
    add_hot_route(app, "/v1/replies", replies, RepliesRequest, RepliesResponse, operation)


def _require_embedding(outcome: Prediction | Problem, index: int) -> Embedding:
    """Return the embedding of the dialogue, at index 0, or of a candidate; raise its problem for the request."""
    if isinstance(outcome, EmptyText):
        raise EmptyText(outcome.detail, pointer="/turns" if index == 0 else f"/candidates/{index - 1}")
    if isinstance(outcome, Problem):
        raise outcome
    assert isinstance(outcome, Embedding)
    return outcome
