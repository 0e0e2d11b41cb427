"""One query to one ranking, with reasons."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from models.catalogue.attributes import FilterError
from models.catalogue.projections import ItemProjections, ProjectionView
from models.catalogue.snapshot import Snapshot
from models.catalogue.vector_index import MIN_INDEX_ROWS, VectorIndex
from models.ranking.events import History
from models.ranking.recommender import Recommender
from service.errors import InferenceFailed, InvalidRequest, Problem
from service.inference.ranking_query import RankingQuery

_REASONS = 3
MIN_REASON_WEIGHT = 0.02
"""Below it an event is not named as a reason."""


@dataclass(frozen=True, slots=True)
class Reason:
    """`event` is a place among the events that were read."""

    event: int
    weight: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """`places` are those of a question's candidates, or rows of the catalogue, the best first."""

    positions: list[int]
    scores: list[float]
    reasons: list[list[Reason]]


def prepare_projections(recommender: Recommender, snapshot: Snapshot) -> None:
    """Make what rankings keep of a snapshot, before the first of them that would have to."""
    if snapshot.name == recommender.catalogue_name:
        recommender.cached_training_indices(snapshot.ids, snapshot.vectors)
    if _is_small(snapshot):
        snapshot.projections.get(snapshot.vectors, recommender.project)


def rank_query(recommender: Recommender, question: RankingQuery) -> Ranking | Problem:
    """Without a history, what is popular; its scores are shares of all that was taken in the catalogue.

    Where the question asks for newcomers and too few are among the best, the best of them take the last places.
    """
    try:
        allowed = _allowed(question)
    except FilterError as error:
        keys = "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in error.path)
        return InvalidRequest(f"{error}.", pointer=f"/filter{keys}")
    index = question.index
    found = _best(recommender, question, allowed, index)
    if not question.min_new_items or isinstance(found, Problem):
        return found
    new = _new(recommender, question)
    if new is None or new[found.positions].sum() >= min(question.min_new_items, question.top_k):
        return found
    only = replace(question, top_k=min(question.min_new_items, question.top_k))
    # Newcomers may be in lists that no taste looks through.
    every = index if index is not None and index.exact else None
    best = _best(recommender, only, new if allowed is None else new & allowed, every)
    return best if isinstance(best, Problem) else _joined(found, best, new, question.top_k)


def _new(recommender: Recommender, question: RankingQuery) -> NDArray[np.bool_] | None:
    """Of each candidate or row, whether it is a newcomer to the catalogue and to the user.

    None in another's catalogue, where all are.
    """
    trained = _candidates_trained(question, _trained(recommender, question, _sent(recommender, question)))
    if trained is None:
        return None
    numbers = np.arange(len(trained)) if question.candidates is None else question.candidates
    return recommender.is_cold(trained) & ~np.isin(numbers, question.items)


def _joined(found: Ranking, newcomers: Ranking, new: NDArray[np.bool_], top_k: int) -> Ranking:
    """All the `newcomers`, and as many of the others found as there is place for; the greatest scores first."""
    rows = [row for row in _rows(found) if not new[row[0]]][: top_k - len(newcomers.positions)] + _rows(newcomers)
    rows.sort(key=itemgetter(1), reverse=True)
    places, scores, because = (list(part) for part in zip(*rows, strict=True)) if rows else ([], [], [])
    return Ranking(places, scores, because)


def _rows(ranking: Ranking) -> list[tuple[int, float, list[Reason]]]:
    return list(zip(ranking.positions, ranking.scores, ranking.reasons, strict=True))


def _best(
    recommender: Recommender, question: RankingQuery, allowed: NDArray[np.bool_] | None, index: VectorIndex | None
) -> Ranking | Problem:
    if not len(question.items):
        return _popular(question, allowed)
    return _ranked(recommender, question, allowed, index)


def _allowed(question: RankingQuery) -> NDArray[np.bool_] | None:
    """Of each candidate or row; None when all are. What came as a text has no attributes, so it meets no filter."""
    snapshot, candidates = question.snapshot, question.candidates
    if candidates is None:
        inside = question.excluded[question.excluded < snapshot.rows]
        return snapshot.filter_mask(question.filter, inside.tolist())
    if question.filter is None:
        return None if not len(question.excluded) else ~np.isin(candidates, question.excluded)
    rows = snapshot.filter_mask(question.filter)
    here = candidates < snapshot.rows
    meets = here if rows is None else here & rows[np.where(here, candidates, 0)]
    return meets & ~np.isin(candidates, question.excluded)


def _popular(question: RankingQuery, allowed: NDArray[np.bool_] | None) -> Ranking:
    snapshot, candidates = question.snapshot, question.candidates
    taken = snapshot.popularity
    if candidates is None:
        best = snapshot.most_popular(question.top_k, allowed)
    else:
        taken = np.append(taken, 0.0)[np.minimum(candidates, snapshot.rows)]
        places = np.arange(len(candidates)) if allowed is None else np.flatnonzero(allowed)
        best = places[np.argsort(-taken[places], kind="stable")[: question.top_k]]
    shares = taken[best] / max(snapshot.popularity.sum(), 1.0)
    return Ranking(best.tolist(), shares.tolist(), [[] for _ in best])


def _ranked(
    recommender: Recommender, question: RankingQuery, allowed: NDArray[np.bool_] | None, index: VectorIndex | None
) -> Ranking | Problem:
    history, vectors, trained = _projected(recommender, question)
    wanted = min(question.top_k, len(vectors) if allowed is None else int(allowed.sum()))
    if not wanted:
        return Ranking([], [], [])
    found = recommender.rank(history, vectors, question.candidates, question.top_k, allowed, trained, index)
    if len(found.order) < wanted:  # it leaves out what has no finite score
        return InferenceFailed("The model failed on this history.")
    return Ranking(found.order.tolist(), found.scores.tolist(), _because(found.weights))


def ranking_inputs(
    recommender: Recommender, question: RankingQuery
) -> tuple[History, NDArray[np.float32], NDArray[np.int64] | None]:
    """The history, and the candidates' item vectors (candidates, width) and numbers as trained items (candidates,)."""
    snapshot, candidates = question.snapshot, question.candidates
    sent = _sent(recommender, question)
    vectors = snapshot.vectors if candidates is None else _vectors(candidates, snapshot.vectors, sent)
    history, trained = _history(recommender, question, _vectors(question.items, snapshot.vectors, sent), sent)
    return history, vectors, trained


def _projected(
    recommender: Recommender, question: RankingQuery
) -> tuple[History, NDArray[np.float32] | ProjectionView, NDArray[np.int64] | None]:
    """The same with vectors projected, of a catalogue so small that keeping those of all rows costs little."""
    snapshot, candidates = question.snapshot, question.candidates
    if not _is_small(snapshot):
        return ranking_inputs(recommender, question)
    items = snapshot.projections.get(snapshot.vectors, recommender.project)
    placed = _sent(recommender, question)
    sent = recommender.project(placed) if question.inline_items else items[:0]
    history, trained = _history(recommender, question, _picked(question.items, items, sent), placed)
    return history, ProjectionView(items) if candidates is None else _picked(candidates, items, sent), trained


def _is_small(snapshot: Snapshot) -> bool:
    return snapshot.index is None and snapshot.rows <= MIN_INDEX_ROWS


def _picked(numbers: NDArray[np.int64], items: ItemProjections, sent: ItemProjections) -> ProjectionView:
    """Those with these numbers, of items of the catalogue and of those that came as a text."""
    if not len(sent):
        return ProjectionView(items, numbers)
    outside = numbers >= len(items)
    rows = np.where(outside, np.cumsum(outside) - 1 + np.sum(~outside), np.cumsum(~outside) - 1)
    return ProjectionView(items[numbers[~outside]].extend(sent[numbers[outside] - len(items)]), rows)


def _history(
    recommender: Recommender,
    question: RankingQuery,
    vectors: NDArray[np.float32] | ProjectionView,
    sent: NDArray[np.float32],
) -> tuple[History, NDArray[np.int64] | None]:
    """And the candidates' numbers as trained items; `sent` are the item vectors of what came as a text."""
    trained = _trained(recommender, question, sent)
    own = None if trained is None else trained[question.items]
    history = History(vectors, question.items, question.kinds, question.ages, own)
    return history, _candidates_trained(question, trained)


def _candidates_trained(question: RankingQuery, trained: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """Of each candidate or row, from those by item number."""
    if trained is None:
        return None
    return trained[: question.snapshot.rows] if question.candidates is None else trained[question.candidates]


def _trained(recommender: Recommender, question: RankingQuery, sent: NDArray[np.float32]) -> NDArray[np.int64] | None:
    """By item number, as the recommender numbers the items that it was trained with; None in another's catalogue."""
    if question.snapshot.name != recommender.catalogue_name:
        return None
    known = recommender.cached_training_indices(question.snapshot.ids, question.snapshot.vectors)
    if not question.inline_items:
        return known
    return np.concatenate([known, recommender.training_indices([one.item_id for one in question.inline_items], sent)])


def _sent(recommender: Recommender, question: RankingQuery) -> NDArray[np.float32]:
    if not question.vectors:
        return np.empty((0, recommender.width), np.float32)
    own = question.snapshot.name == recommender.catalogue_name
    ids = [one.item_id if own else None for one in question.inline_items]
    return recommender.item_vectors(np.stack(question.vectors), ids)


def _vectors(numbers: NDArray[np.int64], placed: NDArray[np.float32], sent: NDArray[np.float32]) -> NDArray[np.float32]:
    """(numbers, width) of items of the catalogue and of those that came as a text."""
    if not len(sent):
        return placed[numbers]
    outside = numbers >= len(placed)
    found = np.empty((len(numbers), sent.shape[1]), np.float32)
    found[~outside] = placed[numbers[~outside]]
    found[outside] = sent[numbers[outside] - len(placed)]
    return found


def _because(weights: NDArray[np.float32]) -> list[list[Reason]]:
    """Of each ranked item the events it leans on most; those that speak against it are no reasons."""
    best = np.argsort(-weights, axis=1)[:, :_REASONS]
    shares = weights[np.arange(len(best))[:, None], best]
    return [
        [Reason(event, share) for event, share in zip(events, parts, strict=True) if share >= MIN_REASON_WEIGHT]
        for events, parts in zip(best.tolist(), shares.tolist(), strict=True)
    ]
