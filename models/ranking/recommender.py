"""Ranking without torch: a user's history and candidates to scores, and what each score leans on.

The same arithmetic as `models.networks.recommender`, in numpy: one user at a time, since on a CPU padding several
histories to one length costs more than one larger product gains. Knows arrays and the bundle's weights, nothing of
texts. Histories are read by `models.ranking.history_encoder`.
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
"""The length of a text's part of an item vector."""

MAX_RERANKED = 400
"""Candidates, of many, that are looked at with their own attention: the best by taste and neighbours, and the
history's own."""

_EXAMPLES, _EVENTS = 32, 20

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Ranked:
    """The best candidates: `order` (k,) their places among those given, `scores` (k,) in 0 to 1, and `weights`
    (k, events): of what the events add to a candidate's score, the part of each; a row sums to less than 1."""

    order: NDArray[np.int64]
    scores: Array
    weights: Array


class Recommender:
    """The history model of a bundle.

    `catalogue` is the name of the items that it was trained with, `ids` their numbers, -1 of those that nobody had
    taken. With their item `vectors` (items, width), newcomers to that catalogue are told what the weights have for
    them, if they have anything.
    """

    def __init__(
        self, weights: Mapping[str, Array], catalogue: str, ids: Mapping[str, int], vectors: Array | None = None
    ) -> None:
        self.catalogue_name, self.ids = catalogue, ids
        self._w = dict(weights)
        self.width = weights["taste.weight"].shape[0]
        self._reading = HistoryEncoder(weights)
        self._attention = CandidateAttention(weights, self._reading)
        fade = float(weights["fade"][0]) if "fade" in weights else 1.0  # bundles up to 1.1.0 know none
        newcomers = None
        if vectors is not None and len(weights.get("newcomers", ())):
            always, said, taken = weights["newcomers"].tolist()
            newcomers = ColdStart(
                ColdStartWeights(bias=always, neighbours=said, taken=taken), weights["kin"].astype(np.int32)
            )
            self._places = np.array([number for number in ids.values() if number >= 0], np.int64)
            self._texts = ((vectors - weights["ids.weight"])[self._places] / SCALE).astype(np.float32)
        self.item_neighbours = ItemNeighbours(
            weights["neighbours"].astype(np.int32), weights["nearness"], fade, newcomers
        )
        nothing = np.empty((0, self.width), np.float32)
        self._numbered: tuple[Sequence[str | None], Array, NDArray[np.int64]] = ((), nothing, np.empty(0, np.int64))
        self._slope, self._offset = (float(value) for value in weights["calibration"])
        spanning = np.column_stack([weights["taste.weight"], weights["taste.bias"]]).astype(np.float64)
        self._basis = np.linalg.qr(spanning)[0].astype(np.float32)

    def query_subspace(self, vectors: Array) -> tuple[Array, Array]:
        """(width, at most width): an orthonormal basis in whose span every taste lies; and (examples, width): tastes of
        histories whose items are drawn from those with `vectors` (items, width)."""
        rows = np.random.default_rng(0).integers(0, len(vectors), (_EXAMPLES, _EVENTS))
        kinds, ages = np.full(_EVENTS, EVENT_TYPES.index("purchase")), np.full(_EVENTS, np.nan, np.float32)
        examples = [self._reading.encode(History(vectors[some], some, kinds, ages))[0] for some in rows]
        return self._basis, np.stack(examples)

    def project(self, vectors: Array) -> ItemProjections:
        """Item vectors (items, width) as rankings want them."""
        return ItemProjections(
            vectors @ self._basis, self._reading.candidate_queries(vectors), self._reading.inputs_of(vectors)
        )

    def item_vectors(self, raw: Array, item_ids: Sequence[str | None]) -> Array:
        """Texts' vectors by the encoder (items, width) to item vectors; a known id adds what was learned of it."""
        centred = raw - self._w["centre"]
        lengths = np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
        placed: Array = (centred / lengths * SCALE).astype(np.float32)
        numbers = self._known(item_ids)
        known = numbers >= 0
        placed[known] += self._w["ids.weight"][numbers[known]]
        return placed

    def cached_training_indices(self, item_ids: Sequence[str | None], vectors: Array) -> NDArray[np.int64]:
        """(items,) as `numbers` gives them for items with these vectors; kept for the list asked last, and what is
        the same for the next one."""
        ids, before, numbers = self._numbered
        if ids is not item_ids:
            found, new = self._known(item_ids), self._newcomers(item_ids)
            same = np.array([row for row in new if row < len(ids) and ids[row] == item_ids[row]], np.int64)
            same = same[(vectors[same] == before[same]).all(axis=1)]
            found[same] = numbers[same]
            more = np.setdiff1d(new, same)
            found[more] = self._nearest(vectors[more])
            numbers = found
            self._numbered = item_ids, vectors, numbers
        return numbers

    def training_indices(self, item_ids: Sequence[str | None], vectors: Array) -> NDArray[np.int64]:
        """(items,) the numbers under which the model knows these ids, below 0 for others.

        Where it knows of newcomers, those are below -1 that have a text alone, None, or an id that was not there when
        it was trained; an empty id is of no item.
        """
        found, new = self._known(item_ids), self._newcomers(item_ids)
        found[new] = self._nearest(vectors[new])
        return found

    def is_cold(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these are newcomers; all that it does not know, if it has nothing to tell newcomers."""
        return numbers < (0 if self.item_neighbours.cold_start is None else -1)

    def _known(self, item_ids: Sequence[str | None]) -> NDArray[np.int64]:
        return np.array([-1 if one is None else self.ids.get(one, -1) for one in item_ids], np.int64)

    def _newcomers(self, item_ids: Sequence[str | None]) -> NDArray[np.int64]:
        """Their places."""
        told = () if self.item_neighbours.cold_start is None else enumerate(item_ids)
        return np.array([place for place, one in told if one != "" and one not in self.ids], np.int64)

    def _nearest(self, vectors: Array) -> NDArray[np.int64]:
        """The numbers of newcomers with these vectors."""
        if not len(vectors):
            return np.empty(0, np.int64)
        return encode_cold_index(find_nearest_known(vectors / SCALE, self._texts, self._places))

    def rank(
        self,
        history: History,
        vectors: Array | ProjectionView,
        items: NDArray[np.int64] | None,
        top_k: int,
        allowed: NDArray[np.bool_] | None = None,
        trained: NDArray[np.int64] | None = None,
        index: VectorIndex | None = None,
    ) -> Ranked:
        """The best `top_k` of candidates with item `vectors` (candidates, width), as they are or projected, and numbers
        `items` (candidates,).

        Without `items` a candidate's number is its place. Of more than RANKED candidates, those are ranked that the
        history's taste puts first, and its own items. Where `allowed` (candidates,) is False a candidate is left out.
        With `trained` (candidates,), numbers as in History, candidates' neighbours in the history speak too. An `index`
        of the vectors, given without `items`, says which of them a taste may put first. Raises ValueError for an empty
        history.
        """
        if not len(history):
            raise ValueError("there is nothing to rank by in an empty history")
        liked = history.kinds != DISLIKE
        taste, shown = self._reading.encode(history.select(liked))
        near = self._near(history, liked, items, trained)
        wanted = max(MAX_RERANKED, 4 * top_k)
        rows = None
        if index is not None and not isinstance(vectors, ProjectionView):
            rows = index.search(taste, vectors, wanted, allowed)
        if rows is not None:
            rows = np.union1d(rows, history.items[(history.items >= 0) & (history.items < len(vectors))])
            if near is not None:
                rows = np.union1d(rows, np.flatnonzero(near))
            vectors, items = vectors[rows], rows
            near = None if near is None else near[rows]
            allowed = None if allowed is None else allowed[rows]
            trained = None if trained is None else trained[rows]
        scores = vectors.products(taste @ self._basis) if isinstance(vectors, ProjectionView) else vectors @ taste
        if near is not None:
            scores += near
        if allowed is not None:
            scores[~allowed] = -np.inf
        chosen = preselect(scores, items, history.items, wanted)
        numbers = chosen if items is None else items[chosen]
        looks = self._attention.attend(shown, history, liked, vectors[chosen], numbers)
        found = scores[chosen] + sum(look.added for look in looks)
        best = np.argsort(-found, kind="stable")[:top_k]
        best = best[np.isfinite(found[best])]
        weights = np.zeros((len(best), len(history)), np.float32)
        for look in looks:
            weights[:, look.events] = look.weights(best)
        if trained is not None and history.training_indices is not None:
            said = self.item_neighbours.contributions(history.training_indices, liked, trained[chosen[best]])
            heard = np.abs(found[best] - scores[chosen[best]])[:, None]
            weights = (weights * heard + said) / np.maximum(heard + np.abs(said).sum(axis=1, keepdims=True), 1e-9)
        return Ranked(chosen[best] if rows is None else rows[chosen[best]], self._calibrated(found[best]), weights)

    def score(
        self,
        histories: Sequence[History],
        vectors: Array,
        items: NDArray[np.int64],
        trained: NDArray[np.int64] | None = None,
    ) -> Array:
        """(histories, candidates): what `rank` scores each candidate by each of several histories.

        By a history without events a candidate has the score that nobody's taste gives it.
        """
        return np.stack([self._scored(history, vectors, items, trained) for history in histories])

    def _scored(
        self, history: History, vectors: Array, items: NDArray[np.int64], trained: NDArray[np.int64] | None
    ) -> Array:
        liked = history.kinds != DISLIKE
        taste, shown = self._reading.encode(history.select(liked))
        found = vectors @ taste
        near = self._near(history, liked, items, trained)
        if near is not None:
            found += near
        return self._calibrated(
            found + sum(look.added for look in self._attention.attend(shown, history, liked, vectors, items))
        )

    def _near(
        self,
        history: History,
        liked: NDArray[np.bool_],
        items: NDArray[np.int64] | None,
        trained: NDArray[np.int64] | None,
    ) -> Array | None:
        """What the history's items say of the candidates (candidates,): nothing of a newcomer that is among them."""
        if trained is None or history.training_indices is None:
            return None
        newcomers = trained.min(initial=0) < -1
        found: Array = self.item_neighbours.scores(history.training_indices, liked, newcomers)[trained]
        if newcomers:
            own = history.items[history.items >= 0]
            found[own[own < len(found)] if items is None else is_in(items, own)] = 0
        return found

    def _calibrated(self, found: Array) -> Array:
        return np.asarray(expit(self._slope * found + self._offset), np.float32)
