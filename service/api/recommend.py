"""`/v1/recommend`: what users did in, what they may want next out, and which of their events each item leans on.

Ids mean items of a catalogue; what comes as a text is read by the model of the bundle, all texts of a request together.
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
from service.http.hot_route import add_hot_route, deadline_s
from service.http.responses import as_list, failed_item, raise_if_all_failed, results_response
from service.inference.predictor import Embedding, Item, Prediction, Predictor, Timings
from service.inference.ranking import Ranking
from service.inference.ranking_engine import RankingEngine
from service.inference.ranking_query import RankingQuery
from service.registry.catalogues import CatalogueRegistry
from service.schemas.recommend import RecommendRequest, RecommendResponse, User, fast_parser
from service.settings import Settings

_INLINE = 2_000
"""Events and candidates; more would hold up the event loop for milliseconds."""

_NOTHING = Timings(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Rankings:
    """The ranking engine and the catalogues that its queries name."""

    engine: RankingEngine
    catalogues: CatalogueRegistry


def add_recommend(app: FastAPI, predictor: Predictor, rankings: Rankings, settings: Settings) -> None:
    body = JsonBody(RecommendRequest, settings.max_body_bytes, settings.request_timeout_s, fast_parser)

    async def recommend(given: Request) -> Response:
        """Items for one user or for up to 64: the candidates sent along, or a whole catalogue, the best first."""
        due_s = deadline_s(given, settings)
        request = await body.read(given)
        users: Sequence[User] = as_list(request.inputs)
        questions, read, reading = await build_queries(predictor, rankings.catalogues, users, due_s)
        outcomes, ranking = await _ranked(rankings.engine, questions, due_s)
        raise_if_all_failed(outcomes, request.inputs)
        results = [
            _result(user, question, outcome, read)
            for user, question, outcome in zip(users, questions, outcomes, strict=True)
        ]
        return results_response(predictor, results, _sum(reading, ranking))

    add_hot_route(app, "/v1/recommend", recommend, RecommendRequest, RecommendResponse, 404, 409)


PredictionsByText = Mapping[str, Prediction | Problem]
"""What the model gives for each text."""


async def build_queries(
    predictor: Predictor, catalogues: CatalogueRegistry, users: Sequence[User], due_s: float
) -> tuple[list[RankingQuery | Problem], PredictionsByText, Timings]:
    """Each user's question with the vectors of its texts, or the user's problem."""
    names = [user.catalogue or catalogues.default_name for user in users]
    snapshots = {name: await _current(catalogues, name) for name in dict.fromkeys(names)}
    asked = await _asked(users, [snapshots[name] for name in names])
    texts = dict.fromkeys(sent.text for one in asked if isinstance(one, RankingQuery) for sent in one.inline_items)
    read, reading = await _read(predictor, list(texts), due_s)
    questions = [_with_vectors(one, read) if isinstance(one, RankingQuery) else one for one in asked]
    return questions, read, reading


async def _current(catalogues: CatalogueRegistry, name: str) -> Snapshot | Problem:
    try:
        return await catalogues.snapshot(name, "/catalogue")
    except Problem as problem:
        return problem


async def _asked(users: Sequence[User], snapshots: Sequence[Snapshot | Problem]) -> list[RankingQuery | Problem]:
    def ask() -> list[RankingQuery | Problem]:
        now_s = time.time()
        return [_question(user, snapshot, now_s) for user, snapshot in zip(users, snapshots, strict=True)]

    many = sum(len(user.history) + len(user.candidates or ()) for user in users) > _INLINE
    return await asyncio.to_thread(ask) if many else ask()


def _question(user: User, snapshot: Snapshot | Problem, now_s: float) -> RankingQuery | Problem:
    if isinstance(snapshot, Problem):
        return snapshot
    try:
        return build_query(user, snapshot, now_s)
    except Problem as problem:
        return problem


async def _read(predictor: Predictor, texts: Sequence[str], due_s: float) -> tuple[PredictionsByText, Timings]:
    if not texts:
        return {}, _NOTHING
    answer = await predictor.predict([Item(text) for text in texts], True, due_s)
    return dict(zip(texts, answer.outcomes, strict=True)), answer.timings


def _with_vectors(question: RankingQuery, read: PredictionsByText) -> RankingQuery | Problem:
    """The problem of a text that it needs, if there is one."""
    vectors: list[NDArray[np.float32]] = []
    for sent in question.inline_items:
        outcome = read[sent.text]
        if isinstance(outcome, EmptyText):
            return EmptyText(outcome.detail, pointer=sent.pointer)
        if isinstance(outcome, Problem):
            return outcome
        assert isinstance(outcome, Embedding)
        vectors.append(outcome.vector)
    return question.with_vectors(vectors) if vectors else question


async def _ranked(
    recommending: RankingEngine, questions: Sequence[RankingQuery | Problem], due_s: float
) -> tuple[list[Ranking | Problem], Timings]:
    asked = [one for one in questions if isinstance(one, RankingQuery)]
    if not asked:
        return [one for one in questions if isinstance(one, Problem)], _NOTHING
    found, timings = await recommending.rank(asked, due_s)
    rankings = iter(found)
    return [one if isinstance(one, Problem) else next(rankings) for one in questions], timings


def _result(
    user: User, question: RankingQuery | Problem, outcome: Ranking | Problem, read: PredictionsByText
) -> dict[str, Any]:
    if isinstance(outcome, Problem):
        return failed_item(outcome, user)
    assert isinstance(question, RankingQuery)
    return {
        "items": _items(question, outcome),
        "catalogue": question.snapshot.name,
        "cold_start": not len(question.items),
        "history_used": len(question.items),
        "history_dropped": question.dropped,
        "history_skipped": question.skipped,
        "candidates_skipped": question.candidates_skipped,
        "candidates_repeated": question.candidates_repeated,
        "truncated": is_truncated(question, read),
        "id": user.id,
    }


def is_truncated(question: RankingQuery, read: PredictionsByText) -> bool:
    """Whether a text that came along was longer than the model reads."""
    outcomes = [read[sent.text] for sent in question.inline_items]
    return any(isinstance(one, Prediction) and one.truncated for one in outcomes)


def _items(question: RankingQuery, ranking: Ranking) -> list[dict[str, Any]]:
    items = []
    ranked = zip(ranking.positions, ranking.scores, ranking.reasons, strict=True)
    for rank, (place, score, because) in enumerate(ranked, start=1):
        items.append(
            {
                "rank": rank,
                **item_at(question, place),
                "score": score,
                "reasons": [
                    {"history_index": question.history_positions[reason.event], "weight": reason.weight}
                    for reason in because
                ],
            }
        )
    return items


def item_at(question: RankingQuery, place: int) -> dict[str, Any]:
    """Of a candidate, or a row of the catalogue."""
    candidates = question.candidates
    item_id, text = item_id_and_text(question, place if candidates is None else int(candidates[place]))
    index = None if candidates is None else question.candidate_positions[place]
    return {"item_id": item_id, "candidate_index": index, "text": text}


def item_id_and_text(question: RankingQuery, number: int) -> tuple[str | None, str]:
    """An item's id and text."""
    snapshot = question.snapshot
    if number < snapshot.rows:
        return snapshot.ids[number], snapshot.texts[number]
    sent = question.inline_items[number - snapshot.rows]
    return sent.item_id, sent.text


def _sum(one: Timings, other: Timings) -> Timings:
    return Timings(one.tokenize_s + other.tokenize_s, one.queue_s + other.queue_s, one.infer_s + other.infer_s)
