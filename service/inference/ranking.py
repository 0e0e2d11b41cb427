"""The ranking of one query, with reasons.

Items are item numbers of the query: rows of its catalogue, followed by its inline items.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np
import structlog
from numpy.typing import NDArray

from models.catalogue.attributes import FilterError
from models.catalogue.projections import ItemProjections, ProjectionView
from models.catalogue.snapshot import Snapshot
from models.catalogue.vector_index import MIN_INDEX_ROWS, VectorIndex
from models.ranking.events import History
from models.ranking.recommender import Recommender
from service.errors import InferenceFailed, InvalidRequest, Problem
from service.inference.ranking_query import RankingQuery

_log = structlog.get_logger(__name__)

_MAX_REASONS = 3
MIN_REASON_WEIGHT = 0.02
"""Below this weight an event is not a reason."""


@dataclass(frozen=True, slots=True)
class Reason:
    """An event that raised the score of an item; `event` is its index among the events that were read."""

    event: int
    weight: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """Ranked items, the best first; `positions` are indexes into the query's candidates, or rows of the catalogue."""

    positions: list[int]
    scores: list[float]
    reasons: list[list[Reason]]


def prepare_projections(recommender: Recommender, snapshot: Snapshot) -> None:
    """Compute what rankings cache for a snapshot, so that the first ranking does not have to."""
    if snapshot.name == recommender.catalogue_name:
        recommender.cached_training_indices(snapshot.ids, snapshot.vectors)
    if is_small(snapshot):
        snapshot.projections.get(snapshot.vectors, recommender.project)


def is_small(snapshot: Snapshot) -> bool:
    """Return whether the catalogue is so small that caching the projections of all rows costs little."""
    return snapshot.index is None and snapshot.rows <= MIN_INDEX_ROWS


def rank_query(recommender: Recommender, query: RankingQuery) -> Ranking | Problem:
    """Return the best items for the query, or its problem.

    Without a history, items are ranked by popularity, and scores are shares of the catalogue's total popularity. If
    the ranking has fewer new items than the query demands, the best new items replace the last positions.
    """
    try:
        allowed = _allowed_mask(query)
    except FilterError as error:
        keys = "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in error.path)
        return InvalidRequest(f"{error}.", pointer=f"/filter{keys}")
    index = query.index
    ranking = _rank_allowed(recommender, query, allowed, index)
    if not query.min_new_items or isinstance(ranking, Problem):
        return ranking
    new = _new_item_mask(recommender, query)
    if new is None or new[ranking.positions].sum() >= min(query.min_new_items, query.top_k):
        return ranking
    new_query = replace(query, top_k=min(query.min_new_items, query.top_k))
    # New items may be in lists of the index that no user vector probes.
    exact_index = index if index is not None and index.exact else None
    new_ranking = _rank_allowed(recommender, new_query, new if allowed is None else new & allowed, exact_index)
    return new_ranking if isinstance(new_ranking, Problem) else _merge(ranking, new_ranking, new, query.top_k)


def _new_item_mask(recommender: Recommender, query: RankingQuery) -> NDArray[np.bool_] | None:
    """Return a mask (candidates,) of the cold items that are new to the user.

    It is None if the catalogue is not the model's own, where every item is cold.
    """
    by_item = _training_indices(recommender, query, _inline_vectors(recommender, query))
    trained = _candidate_training_indices(query, by_item)
    if trained is None:
        return None
    numbers = np.arange(len(trained)) if query.candidates is None else query.candidates
    return recommender.is_cold(trained) & ~np.isin(numbers, query.items)


def _merge(ranking: Ranking, new_ranking: Ranking, new: NDArray[np.bool_], top_k: int) -> Ranking:
    """Return all of `new_ranking` and the best known items of `ranking` that fit, by descending score."""
    known_rows = [row for row in _rows(ranking) if not new[row[0]]]
    rows = known_rows[: top_k - len(new_ranking.positions)] + _rows(new_ranking)
    rows.sort(key=itemgetter(1), reverse=True)
    positions, scores, reasons = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    return Ranking(positions, scores, reasons)


def _rows(ranking: Ranking) -> list[tuple[int, float, list[Reason]]]:
    return list(zip(ranking.positions, ranking.scores, ranking.reasons, strict=True))


def _rank_allowed(
    recommender: Recommender, query: RankingQuery, allowed: NDArray[np.bool_] | None, index: VectorIndex | None
) -> Ranking | Problem:
    if not len(query.items):
        return _rank_by_popularity(query, allowed)
    return _rank_by_model(recommender, query, allowed, index)


def _allowed_mask(query: RankingQuery) -> NDArray[np.bool_] | None:
    """Return a mask of the allowed candidates or rows, or None if all are allowed.

    Inline items have no attributes, so they match no filter.
    """
    snapshot, candidates = query.snapshot, query.candidates
    if candidates is None:
        inside = query.excluded[query.excluded < snapshot.rows]
        return snapshot.filter_mask(query.filter, inside.tolist())
    if query.filter is None:
        return None if not len(query.excluded) else ~np.isin(candidates, query.excluded)
    rows = snapshot.filter_mask(query.filter)
    in_catalogue = candidates < snapshot.rows
    matches = in_catalogue if rows is None else in_catalogue & rows[np.where(in_catalogue, candidates, 0)]
    return matches & ~np.isin(candidates, query.excluded)


def _rank_by_popularity(query: RankingQuery, allowed: NDArray[np.bool_] | None) -> Ranking:
    snapshot, candidates = query.snapshot, query.candidates
    popularity = snapshot.popularity
    if candidates is None:
        best = snapshot.most_popular(query.top_k, allowed)
    else:
        popularity = np.append(popularity, 0.0)[np.minimum(candidates, snapshot.rows)]
        positions = np.arange(len(candidates)) if allowed is None else np.flatnonzero(allowed)
        best = positions[np.argsort(-popularity[positions], kind="stable")[: query.top_k]]
    shares = popularity[best] / max(snapshot.popularity.sum(), 1.0)
    return Ranking(best.tolist(), shares.tolist(), [[] for _ in best])


def _rank_by_model(
    recommender: Recommender, query: RankingQuery, allowed: NDArray[np.bool_] | None, index: VectorIndex | None
) -> Ranking | Problem:
    history, vectors, trained = _projected_inputs(recommender, query)
    wanted = min(query.top_k, len(vectors) if allowed is None else int(allowed.sum()))
    if not wanted:
        return Ranking([], [], [])
    ranked = recommender.rank(history, vectors, query.candidates, query.top_k, allowed, trained, index)
    if len(ranked.order) < wanted:  # items without a finite score are missing
        _log.error("the model returned a value that is not finite", task="recommend")
        return InferenceFailed("The model failed on this history.")
    return Ranking(ranked.order.tolist(), ranked.scores.tolist(), _reasons(ranked.weights))


def ranking_inputs(
    recommender: Recommender, query: RankingQuery
) -> tuple[History, NDArray[np.float32], NDArray[np.int64] | None]:
    """Return the history, the candidates' item vectors (candidates, width) and training indices (candidates,)."""
    snapshot, candidates = query.snapshot, query.candidates
    inline = _inline_vectors(recommender, query)
    vectors = snapshot.vectors if candidates is None else _select_vectors(candidates, snapshot.vectors, inline)
    history, trained = _make_history(recommender, query, _select_vectors(query.items, snapshot.vectors, inline), inline)
    return history, vectors, trained


def _projected_inputs(
    recommender: Recommender, query: RankingQuery
) -> tuple[History, NDArray[np.float32] | ProjectionView, NDArray[np.int64] | None]:
    """Return the inputs of a ranking, with projected vectors if the catalogue is small."""
    snapshot, candidates = query.snapshot, query.candidates
    if not is_small(snapshot):
        return ranking_inputs(recommender, query)
    items = snapshot.projections.get(snapshot.vectors, recommender.project)
    inline = _inline_vectors(recommender, query)
    projected = recommender.project(inline) if query.inline_items else items[:0]
    history, trained = _make_history(recommender, query, _select_projections(query.items, items, projected), inline)
    if candidates is None:
        return history, ProjectionView(items), trained
    return history, _select_projections(candidates, items, projected), trained


def _select_projections(numbers: NDArray[np.int64], items: ItemProjections, inline: ItemProjections) -> ProjectionView:
    """Return the projections of the numbered items, from those of the catalogue and of the inline items."""
    if not len(inline):
        return ProjectionView(items, numbers)
    outside = numbers >= len(items)
    rows = np.where(outside, np.cumsum(outside) - 1 + np.sum(~outside), np.cumsum(~outside) - 1)
    return ProjectionView(items[numbers[~outside]].extend(inline[numbers[outside] - len(items)]), rows)


def _make_history(
    recommender: Recommender,
    query: RankingQuery,
    vectors: NDArray[np.float32] | ProjectionView,
    inline: NDArray[np.float32],
) -> tuple[History, NDArray[np.int64] | None]:
    """Return the history and the candidates' training indices; `inline` holds the vectors of the inline items."""
    by_item = _training_indices(recommender, query, inline)
    trained = None if by_item is None else by_item[query.items]
    history = History(vectors, query.items, query.kinds, query.ages, trained)
    return history, _candidate_training_indices(query, by_item)


def _candidate_training_indices(query: RankingQuery, by_item: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """Return the training index of each candidate or row, from those by item number."""
    if by_item is None:
        return None
    return by_item[: query.snapshot.rows] if query.candidates is None else by_item[query.candidates]


def _training_indices(
    recommender: Recommender, query: RankingQuery, inline: NDArray[np.float32]
) -> NDArray[np.int64] | None:
    """Return the training index by item number, or None if the catalogue is not the model's own."""
    if query.snapshot.name != recommender.catalogue_name:
        return None
    known = recommender.cached_training_indices(query.snapshot.ids, query.snapshot.vectors)
    if not query.inline_items:
        return known
    return np.concatenate([known, recommender.training_indices([item.item_id for item in query.inline_items], inline)])


def _inline_vectors(recommender: Recommender, query: RankingQuery) -> NDArray[np.float32]:
    """Return the item vectors of the inline items, (inline items, width)."""
    if not query.vectors:
        return np.empty((0, recommender.width), np.float32)
    is_own = query.snapshot.name == recommender.catalogue_name
    ids = [item.item_id if is_own else None for item in query.inline_items]
    return recommender.item_vectors(np.stack(query.vectors), ids)


def _select_vectors(
    numbers: NDArray[np.int64], stored: NDArray[np.float32], inline: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the vectors (numbers, width) of the numbered items, from those of the catalogue and the inline items."""
    if not len(inline):
        return stored[numbers]
    outside = numbers >= len(stored)
    vectors = np.empty((len(numbers), inline.shape[1]), np.float32)
    vectors[~outside] = stored[numbers[~outside]]
    vectors[outside] = inline[numbers[outside] - len(stored)]
    return vectors


def _reasons(weights: NDArray[np.float32]) -> list[list[Reason]]:
    """Return for each ranked item the events with the greatest weights; negative weights are no reasons."""
    best = np.argsort(-weights, axis=1)[:, :_MAX_REASONS]
    shares = weights[np.arange(len(best))[:, None], best]
    return [
        [Reason(event, share) for event, share in zip(events, values, strict=True) if share >= MIN_REASON_WEIGHT]
        for events, values in zip(best.tolist(), shares.tolist(), strict=True)
    ]
