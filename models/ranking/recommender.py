"""Ranking without torch: scores of candidates for a user's history, and the events that each score rests on.

The arithmetic is that of `models.networks.recommender`, in NumPy, for one user at a time. On a CPU, padding several
histories to one length costs more than one larger product saves. This module knows arrays and the bundle's weights, but
no texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from models.catalogue.projections import ItemProjections, ProjectionView
from models.catalogue.vector_index import VectorIndex
from models.ranking.candidate_attention import CandidateAttention
from models.ranking.candidates import is_in, preselect
from models.ranking.cold_start import ColdStart, ColdStartWeights, encode_cold_index, find_nearest_known
from models.ranking.events import DISLIKE, EVENT_TYPES, History
from models.ranking.history_encoder import HistoryEncoder
from models.ranking.item_neighbours import ItemNeighbours

SCALE = 4.0
"""Length of the text component of an item vector."""

MAX_RERANKED = 400
"""Candidates that are reranked with candidate attention: the best by user vector and neighbours.

The history's items are reranked too.
"""

_EXAMPLES, _EXAMPLE_EVENTS = 32, 20

Array = NDArray[np.float32]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ranked:
    """The best candidates, best first.

    `order` (k,) are their positions among the candidates, and `scores` (k,) are in 0 to 1. `weights` (k, events) are
    each event's share of what the events add to the score. A row sums to less than 1.
    """

    order: Indices
    scores: Array
    weights: Array


class Recommender:
    """The history model of a bundle.

    `catalogue` names the items that it was trained with. `ids` maps their IDs to training indices, which are -1 for
    items without interactions in training. With their item `vectors` (items, width), the model also scores cold items,
    if its weights support them.
    """

    def __init__(
        self, weights: Mapping[str, Array], catalogue: str, ids: Mapping[str, int], vectors: Array | None = None
    ) -> None:
        self.catalogue_name, self.ids = catalogue, ids
        self.weights = dict(weights)
        self.width = weights["taste.weight"].shape[0]
        self.encoder = HistoryEncoder(weights)
        self.attention = CandidateAttention(weights, self.encoder)
        recency_decay = float(weights["fade"][0]) if "fade" in weights else 1.0  # absent from bundles up to 1.1.0
        cold_start = None
        if vectors is not None and len(weights.get("newcomers", ())):
            bias, neighbours, taken = weights["newcomers"].tolist()
            cold_start = ColdStart(
                ColdStartWeights(bias=bias, neighbours=neighbours, taken=taken), weights["kin"].astype(np.int32)
            )
            self._known_indices = np.array([index for index in ids.values() if index >= 0], np.int64)
            texts = (vectors - weights["ids.weight"])[self._known_indices]
            self._known_texts = (texts / SCALE).astype(np.float32)
        self.item_neighbours = ItemNeighbours(
            weights["neighbours"].astype(np.int32), weights["nearness"], recency_decay, cold_start
        )
        no_vectors = np.empty((0, self.width), np.float32)
        self._cached: tuple[Sequence[str | None], Array, Indices] = ((), no_vectors, np.empty(0, np.int64))
        self._slope, self._offset = (float(value) for value in weights["calibration"])
        spanning = np.column_stack([weights["taste.weight"], weights["taste.bias"]]).astype(np.float64)
        self._basis = np.linalg.qr(spanning)[0].astype(np.float32)

    def query_subspace(self, vectors: Array) -> tuple[Array, Array]:
        """Return the subspace of all user vectors, and examples of user vectors.

        The first is an orthonormal basis (width, at most width). The second (examples, width) are user vectors of
        histories whose items are drawn from those with `vectors` (items, width).
        """
        samples = np.random.default_rng(0).integers(0, len(vectors), (_EXAMPLES, _EXAMPLE_EVENTS))
        kinds = np.full(_EXAMPLE_EVENTS, EVENT_TYPES.index("purchase"))
        ages = np.full(_EXAMPLE_EVENTS, np.nan, np.float32)
        examples = [self.encoder.encode(History(vectors[items], items, kinds, ages))[0] for items in samples]
        return self._basis, np.stack(examples)

    def project(self, vectors: Array) -> ItemProjections:
        """Project item vectors (items, width) to what `rank` reads of them."""
        return ItemProjections(
            vectors @ self._basis, self.encoder.candidate_queries(vectors), self.encoder.history_inputs(vectors)
        )

    def item_vectors(self, raw: Array, item_ids: Sequence[str | None]) -> Array:
        """Return item vectors from the encoder's text vectors `raw` (items, width). Known IDs add their embedding."""
        centred = raw - self.weights["centre"]
        lengths = np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
        vectors: Array = (centred / lengths * SCALE).astype(np.float32)
        indices = self._look_up(item_ids)
        known = indices >= 0
        vectors[known] += self.weights["ids.weight"][indices[known]]
        return vectors

    def cached_training_indices(self, item_ids: Sequence[str | None], vectors: Array) -> Indices:
        """Return `training_indices` of items with these vectors.

        The result of the last list is cached, and the next list reuses the entries of rows that are unchanged.
        """
        cached_ids, cached_vectors, indices = self._cached
        if cached_ids is not item_ids:
            result, cold = self._look_up(item_ids), self._cold_rows(item_ids)
            same = np.array(
                [row for row in cold if row < len(cached_ids) and cached_ids[row] == item_ids[row]], np.int64
            )
            same = same[(vectors[same] == cached_vectors[same]).all(axis=1)]
            result[same] = indices[same]
            new = np.setdiff1d(cold, same)
            result[new] = self._cold_indices(vectors[new])
            indices = result
            self._cached = item_ids, vectors, indices
        return indices

    def training_indices(self, item_ids: Sequence[str | None], vectors: Array) -> Indices:
        """Return the indices (items,) under which the model knows these IDs, negative for unknown ones.

        If the model scores cold items, they have indices below -1: items with only a text, whose ID is None, and items
        whose ID did not exist in training. An empty ID stands for no item.
        """
        indices, cold = self._look_up(item_ids), self._cold_rows(item_ids)
        indices[cold] = self._cold_indices(vectors[cold])
        return indices

    def is_cold(self, indices: Indices) -> NDArray[np.bool_]:
        """Return which items are cold by their training indices. Without cold-start scores, all unknown items are."""
        return indices < (0 if self.item_neighbours.cold_start is None else -1)

    def _look_up(self, item_ids: Sequence[str | None]) -> Indices:
        return np.array([-1 if item_id is None else self.ids.get(item_id, -1) for item_id in item_ids], np.int64)

    def _cold_rows(self, item_ids: Sequence[str | None]) -> Indices:
        numbered = () if self.item_neighbours.cold_start is None else enumerate(item_ids)
        return np.array([row for row, item_id in numbered if item_id != "" and item_id not in self.ids], np.int64)

    def _cold_indices(self, vectors: Array) -> Indices:
        if not len(vectors):
            return np.empty(0, np.int64)
        return encode_cold_index(find_nearest_known(vectors / SCALE, self._known_texts, self._known_indices))

    def rank(
        self,
        history: History,
        vectors: Array | ProjectionView,
        items: Indices | None,
        top_k: int,
        allowed: NDArray[np.bool_] | None = None,
        training_indices: Indices | None = None,
        index: VectorIndex | None = None,
    ) -> Ranked:
        """Return the best `top_k` candidates with these item `vectors` (candidates, width), plain or projected.

        `items` (candidates,) are their item numbers, 0 to n - 1 if None. `allowed` (candidates,) is a mask of those to
        rank. `training_indices` (candidates,) let item neighbours contribute. With an `index` of the vectors, `items`
        must be None. More than MAX_RERANKED candidates are preselected by user vector and neighbours. Raises
        ValueError for an empty history.
        """
        if not len(history):
            raise ValueError("an empty history cannot be ranked; add at least one event")
        liked = history.kinds != DISLIKE
        user_vector, keys = self.encoder.encode(history.select(liked))
        neighbour_scores = self._neighbour_scores(history, liked, items, training_indices)
        count = max(MAX_RERANKED, 4 * top_k)
        rows = None
        if index is not None and not isinstance(vectors, ProjectionView):
            rows = index.search(user_vector, vectors, count, allowed)
        if rows is not None:
            rows = np.union1d(rows, history.items[(history.items >= 0) & (history.items < len(vectors))])
            if neighbour_scores is not None:
                rows = np.union1d(rows, np.flatnonzero(neighbour_scores))
            vectors, items = vectors[rows], rows
            neighbour_scores = None if neighbour_scores is None else neighbour_scores[rows]
            allowed = None if allowed is None else allowed[rows]
            training_indices = None if training_indices is None else training_indices[rows]
        if isinstance(vectors, ProjectionView):
            scores = vectors.products(user_vector @ self._basis)
        else:
            scores = vectors @ user_vector
        if neighbour_scores is not None:
            scores += neighbour_scores
        if allowed is not None:
            scores[~allowed] = -np.inf
        selected = preselect(scores, items, history.items, count)
        selected_items = selected if items is None else items[selected]
        attended = self.attention.attend(keys, history, liked, vectors[selected], selected_items)
        totals = scores[selected] + sum(part.scores for part in attended)
        best = np.argsort(-totals, kind="stable")[:top_k]
        best = best[np.isfinite(totals[best])]
        chosen = selected[best]
        weights = np.zeros((len(best), len(history)), np.float32)
        for part in attended:
            weights[:, part.events] = part.event_weights(best)
        if training_indices is not None:
            by_attention = np.abs(totals[best] - scores[chosen])[:, None]
            weights = self._add_neighbours(weights, by_attention, history, liked, training_indices[chosen])
        return Ranked(chosen if rows is None else rows[chosen], self._calibrate(totals[best]), weights)

    def _add_neighbours(
        self,
        weights: Array,
        by_attention: Array,
        history: History,
        liked: NDArray[np.bool_],
        training_indices: Indices,
    ) -> Array:
        """Return each event's share (candidates, events) of what attention and neighbours add to a score together.

        `weights` (candidates, events) are the shares of attention, and `by_attention` (candidates, 1) is how much
        attention adds.
        """
        if history.training_indices is None:
            return weights
        contributions = self.item_neighbours.contributions(history.training_indices, liked, training_indices)
        total = by_attention + np.abs(contributions).sum(axis=1, keepdims=True)
        shares: Array = (weights * by_attention + contributions) / np.maximum(total, 1e-9)
        return shares

    def score(
        self, histories: Sequence[History], vectors: Array, items: Indices, training_indices: Indices | None = None
    ) -> Array:
        """Return the score (histories, candidates) that `rank` gives each candidate for each history.

        A history without events gives the score of the model's user vector for no events.
        """
        return np.stack([self._score(history, vectors, items, training_indices) for history in histories])

    def _score(self, history: History, vectors: Array, items: Indices, training_indices: Indices | None) -> Array:
        liked = history.kinds != DISLIKE
        user_vector, keys = self.encoder.encode(history.select(liked))
        scores = vectors @ user_vector
        neighbour_scores = self._neighbour_scores(history, liked, items, training_indices)
        if neighbour_scores is not None:
            scores += neighbour_scores
        attended = self.attention.attend(keys, history, liked, vectors, items)
        return self._calibrate(scores + sum(part.scores for part in attended))

    def _neighbour_scores(
        self, history: History, liked: NDArray[np.bool_], items: Indices | None, training_indices: Indices | None
    ) -> Array | None:
        """Return the candidates' neighbour scores (candidates,), 0 for a cold item that the history contains."""
        if training_indices is None or history.training_indices is None:
            return None
        has_cold = training_indices.min(initial=0) < -1
        scores: Array = self.item_neighbours.scores(history.training_indices, liked, has_cold)[training_indices]
        if has_cold:
            own_items = history.items[history.items >= 0]
            scores[own_items[own_items < len(scores)] if items is None else is_in(items, own_items)] = 0
        return scores

    def _calibrate(self, scores: Array) -> Array:
        return np.asarray(expit(self._slope * scores + self._offset), np.float32)
