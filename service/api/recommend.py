"""`/v1/recommend`: items ranked for the history of each user, with reasons.

Ids are items of a catalogue. The model of the bundle reads all other texts of a request together.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from numpy.typing import NDArray

from models.catalogue.snapshot import Snapshot
from service.api.query_builder import build_query
from service.errors import EmptyText, Problem
from service.http.body import JsonBody
from service.http.hot_route import add_hot_route, request_deadline_s
from service.http.openapi import Operation
from service.http.responses import (
    as_list,
    failed_item,
    fill_in,
    language_mark,
    results_response,
    settle_outcomes,
    valid_items,
)
from service.http.validation import InvalidItem
from service.inference.predictor import Embedding, Item, Prediction, Predictor, Timings
from service.inference.ranking import Ranking
from service.inference.ranking_engine import RankingEngine
from service.inference.ranking_query import RankingQuery
from service.registry.catalogues import CatalogueRegistry
from service.schemas.recommend import RecommendRequest, RecommendResponse, User, fast_parser
from service.settings import Settings

_MAX_INLINE_ITEMS = 2_000
"""Events and candidates to look up in the event loop; more would block it for milliseconds."""

_NO_TIME = Timings(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Rankings:
    """The ranking engine and the catalogues that its queries name."""

    engine: RankingEngine
    catalogues: CatalogueRegistry


def add_recommend(app: FastAPI, predictor: Predictor, rankings: Rankings, settings: Settings) -> None:
    """Add the route."""
    reader = JsonBody(RecommendRequest, settings.max_body_bytes, settings.request_timeout_s, fast_parser)

    async def recommend(request: Request) -> Response:
        """Rank items for users: the candidates of each user, or a whole catalogue, best first.

        `inputs` is a user or a list of at most 64. Each item comes with the events that its score rests on.
        """
        deadline_s = request_deadline_s(request, settings)
        body = await reader.read(request)
        users: Sequence[User | InvalidItem] = as_list(body.inputs)
        queries, predictions, prediction_timings = await build_queries(
            predictor, rankings.catalogues, users, deadline_s
        )
        ranked, ranking_timings = await _rank(rankings.engine, queries, deadline_s)
        outcomes = settle_outcomes(body.inputs, ranked)
        results = [
            _result(user, query, outcome, predictions)
            for user, query, outcome in zip(users, queries, outcomes, strict=True)
        ]
        return results_response(predictor, results, _sum(prediction_timings, ranking_timings))

    operation = Operation("recommend_items", "Recommendations", "Recommend items to users", problems=(404, 409))
    add_hot_route(app, "/v1/recommend", recommend, RecommendRequest, RecommendResponse, operation)


PredictionsByText = Mapping[str, Prediction | Problem]
"""The outcome of the model for each text."""


async def build_queries(
    predictor: Predictor, catalogues: CatalogueRegistry, inputs: Sequence[User | InvalidItem], deadline_s: float
) -> tuple[Sequence[RankingQuery | Problem], PredictionsByText, Timings]:
    """Return the query of each user, with the vectors of its texts, or the user's problem."""
    users: list[User] = valid_items(inputs)
    names = [user.catalogue or catalogues.default_name for user in users]
    snapshots = {name: await _snapshot(catalogues, name) for name in dict.fromkeys(names)}
    queries = await _look_up(users, [snapshots[name] for name in names])
    texts = dict.fromkeys(
        item.text for query in queries if isinstance(query, RankingQuery) for item in query.inline_items
    )
    predictions, timings = await _predict(predictor, list(texts), deadline_s)
    with_vectors = [
        _with_vectors(query, predictions) if isinstance(query, RankingQuery) else query for query in queries
    ]
    return fill_in(inputs, with_vectors), predictions, timings


async def _snapshot(catalogues: CatalogueRegistry, name: str) -> Snapshot | Problem:
    try:
        return await catalogues.snapshot(name, "/catalogue")
    except Problem as problem:
        return problem


async def _look_up(users: Sequence[User], snapshots: Sequence[Snapshot | Problem]) -> list[RankingQuery | Problem]:
    """Return the query of each user against a snapshot, without vectors; use a thread for many items."""

    def build() -> list[RankingQuery | Problem]:
        now_s = time.time()
        return [_query(user, snapshot, now_s) for user, snapshot in zip(users, snapshots, strict=True)]

    is_large = sum(len(user.history) + len(user.candidates or ()) for user in users) > _MAX_INLINE_ITEMS
    return await asyncio.to_thread(build) if is_large else build()


def _query(user: User, snapshot: Snapshot | Problem, now_s: float) -> RankingQuery | Problem:
    if isinstance(snapshot, Problem):
        return snapshot
    try:
        return build_query(user, snapshot, now_s)
    except Problem as problem:
        return problem


async def _predict(predictor: Predictor, texts: Sequence[str], deadline_s: float) -> tuple[PredictionsByText, Timings]:
    if not texts:
        return {}, _NO_TIME
    answer = await predictor.predict([Item(text) for text in texts], True, deadline_s)
    return dict(zip(texts, answer.outcomes, strict=True)), answer.timings


def _with_vectors(query: RankingQuery, predictions: PredictionsByText) -> RankingQuery | Problem:
    """Return the query with the vectors of its texts, or the problem of the first text that has one."""
    vectors: list[NDArray[np.float32]] = []
    for item in query.inline_items:
        outcome = predictions[item.text]
        if isinstance(outcome, EmptyText):
            return EmptyText(outcome.detail, pointer=item.pointer)
        if isinstance(outcome, Problem):
            return outcome
        assert isinstance(outcome, Embedding)
        vectors.append(outcome.vector)
    return query.with_vectors(vectors) if vectors else query


async def _rank(
    engine: RankingEngine, queries: Sequence[RankingQuery | Problem], deadline_s: float
) -> tuple[list[Ranking | Problem], Timings]:
    """Rank the items of each query; problems stay in their positions."""
    valid = [query for query in queries if isinstance(query, RankingQuery)]
    if not valid:
        return [query for query in queries if isinstance(query, Problem)], _NO_TIME
    outcomes, timings = await engine.rank(valid, deadline_s)
    rankings = iter(outcomes)
    return [query if isinstance(query, Problem) else next(rankings) for query in queries], timings


def _result(
    user: User | InvalidItem, query: RankingQuery | Problem, outcome: Ranking | Problem, predictions: PredictionsByText
) -> dict[str, Any]:
    if isinstance(outcome, Problem):
        return failed_item(outcome, user)
    assert isinstance(query, RankingQuery)
    return {
        "items": _items(query, outcome),
        "catalogue": query.snapshot.name,
        "cold_start": not len(query.items),
        "history_used": len(query.items),
        "history_dropped": query.dropped,
        "history_skipped": query.skipped,
        "candidates_skipped": query.candidates_skipped,
        "candidates_repeated": query.candidates_repeated,
        "truncated": is_truncated(query, predictions),
        **language_mark(outcome.language for outcome in _read_texts(query, predictions)),
        "id": user.id,
    }


def is_truncated(query: RankingQuery, predictions: PredictionsByText) -> bool:
    """Return whether a text in the request was longer than the model reads."""
    return any(outcome.truncated for outcome in _read_texts(query, predictions))


def _read_texts(query: RankingQuery, predictions: PredictionsByText) -> list[Prediction]:
    """Return the predictions of the texts in the request, in order."""
    outcomes = [predictions[item.text] for item in query.inline_items]
    return [outcome for outcome in outcomes if isinstance(outcome, Prediction)]


def _items(query: RankingQuery, ranking: Ranking) -> list[dict[str, Any]]:
    items = []
    ranked = zip(ranking.positions, ranking.scores, ranking.reasons, strict=True)
    for rank, (position, score, reasons) in enumerate(ranked, start=1):
        items.append(
            {
                "rank": rank,
                **item_at(query, position),
                "score": score,
                "reasons": [
                    {"history_index": query.history_positions[reason.event], "weight": reason.weight}
                    for reason in reasons
                ],
            }
        )
    return items


def item_at(query: RankingQuery, position: int) -> dict[str, Any]:
    """Return the item at a position among the candidates, or in a row of the catalogue without candidates."""
    candidates = query.candidates
    item_id, text = item_id_and_text(query, position if candidates is None else int(candidates[position]))
    index = None if candidates is None else query.candidate_positions[position]
    return {"item_id": item_id, "candidate_index": index, "text": text}


def item_id_and_text(query: RankingQuery, item: int) -> tuple[str | None, str]:
    """Return the id and the text of an item, which is a row of the catalogue or comes with the request."""
    snapshot = query.snapshot
    if item < snapshot.rows:
        return snapshot.ids[item], snapshot.texts[item]
    inline = query.inline_items[item - snapshot.rows]
    return inline.item_id, inline.text


def _sum(first: Timings, second: Timings) -> Timings:
    return Timings(first.tokenize_s + second.tokenize_s, first.queue_s + second.queue_s, first.infer_s + second.infer_s)
