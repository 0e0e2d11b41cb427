"""Ranking without torch: a user's history and candidates to scores, and what each score leans on.

The same arithmetic as `models.recommender`, in numpy: one user at a time, since on a CPU padding several histories to
one length costs more than one larger product gains. Knows arrays and the bundle's weights, nothing of texts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.special import erf, expit

from models.bundle import Bundle, BundleError
from models.edits import Entry

WEIGHTS, ITEMS, ITEM_VECTORS = "history.safetensors", "items.json", "items.safetensors"
"""Of a bundle: the history model's weights, the items of its own catalogue, and their item vectors under `vectors`."""

KINDS: Final = ("view", "click", "cart", "purchase", "like", "other")
"""What an event says of an item, by number. A rating at or above neutral is a like; DISLIKE is no interest at all."""

DISLIKE = -1
NEUTRAL = 3
"""Of ratings from 1 to 5; below it an item was not liked."""

MOST_EVENTS = 256
"""The newest that are read."""

AGES, PLACES = 18, 18
UNKNOWN_AGE = AGES - 1
SCALE = 4.0
"""The length of a text's part of an item vector."""

RANKED = 400
"""Candidates, of many, that are looked at with their own attention: the best by taste, and the history's own items."""

Array = NDArray[np.float32]


def age_of(days: NDArray[np.floating]) -> NDArray[np.int64]:
    """Days before the newest event to buckets of doubling width, from half an hour to years; nan to UNKNOWN_AGE."""
    buckets = np.clip(np.floor(np.log2(np.maximum(np.nan_to_num(days), 1e-9)) + 7), 0, UNKNOWN_AGE - 1)
    return np.where(np.isnan(days), UNKNOWN_AGE, buckets).astype(np.int64)


def place_of(events: int) -> NDArray[np.int64]:
    """For each of so many events, oldest first, a bucket of how many came after it; (events,)."""
    after = np.arange(events - 1, -1, -1)
    buckets: NDArray[np.int64] = np.minimum(np.floor(2 * np.log2(after + 1)), PLACES - 1).astype(np.int64)
    return buckets


def kinds_of(kind: str, values: Array) -> NDArray[np.int64]:
    """Of events that are all of one kind, by name; ratings of 1 to 5 (values, nan otherwise) are likes or others.

    As in the data of what people rate next, where a low rating is no dislike of what it stands for: they chose it.
    """
    if kind == "rating":
        return np.where(values < NEUTRAL, KINDS.index("other"), KINDS.index("like"))
    return np.full(len(values), KINDS.index(kind))


@dataclass(frozen=True, slots=True)
class History:
    """A user's events, oldest first, all arrays of the same length; or several such histories, all of one length.

    Several have an axis before those that follow. `vectors` (events, width) of the items; `items` (events,) whole
    numbers, equal for the same item, -1 for one that no candidate can be; `kinds` (events,) numbers of KINDS or
    DISLIKE; `ages` (events,) days before the newest event, nan where no time was given.
    """

    vectors: Array
    items: NDArray[np.int64]
    kinds: NDArray[np.int64]
    ages: Array

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, slots=True)
class Ranked:
    """The best candidates: `order` (k,) their places among those given, `scores` (k,) in 0 to 1, and `weights`
    (k, events): the part of a candidate's own attention that goes to each event; a row sums to less than 1."""

    order: NDArray[np.int64]
    scores: Array
    weights: Array


class Recommender:
    """The history model of a bundle.

    `catalogue` is the name of the items that it was trained with, `ids` the numbers of those whose ids it knows.
    """

    def __init__(self, weights: Mapping[str, Array], catalogue: str, ids: Mapping[str, int]) -> None:
        self.catalogue, self.ids = catalogue, ids
        self._w = weights
        self.width = weights["taste.weight"].shape[0]
        self._layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        self._heads = len(weights["reader.bias"])
        self._eyes = len(weights["eyes"])
        self._slope, self._offset = (float(value) for value in weights["calibration"])

    def place(self, raw: Array, item_ids: Sequence[str | None]) -> Array:
        """Texts' vectors by the encoder (items, width) to item vectors; a known id adds what was learned of it."""
        centred = raw - self._w["centre"]
        lengths = np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
        placed: Array = (centred / lengths * SCALE).astype(np.float32)
        known = [(row, self.ids[one]) for row, one in enumerate(item_ids) if one is not None and one in self.ids]
        if known:
            rows, numbers = (list(part) for part in zip(*known, strict=True))
            placed[rows] += self._w["ids.weight"][numbers]
        return placed

    def rank(
        self,
        history: History,
        vectors: Array,
        items: NDArray[np.int64],
        top_k: int,
        allowed: NDArray[np.bool_] | None = None,
    ) -> Ranked:
        """The best `top_k` of candidates with item `vectors` (candidates, width) and numbers `items` (candidates,).

        Of more than RANKED candidates, those are ranked that the history's taste puts first, and its own items. Where
        `allowed` (candidates,) is False a candidate is left out. Raises ValueError for an empty history.
        """
        if not len(history):
            raise ValueError("there is nothing to rank by in an empty history")
        liked = history.kinds != DISLIKE
        taste, states = self._read(_part(history, liked))
        scores = vectors @ taste
        if allowed is not None:
            scores = np.where(allowed, scores, -np.inf)
        chosen = self._chosen(scores, items, history.items, top_k)
        added, weights = self._attended(states, history, liked, vectors[chosen], items[chosen])
        found = scores[chosen] + added
        best = np.argsort(-found, kind="stable")[:top_k]
        best = best[np.isfinite(found[best])]
        return Ranked(chosen[best], self._calibrated(found[best]), weights[best])

    def score(self, histories: History, vectors: Array, items: NDArray[np.int64]) -> Array:
        """(histories, candidates): what `rank` scores each candidate by each of several histories.

        All have as many disliked events. By a history without events a candidate has the score that nobody's taste
        gives it.
        """
        liked = histories.kinds != DISLIKE
        taste, states = self._read(_part(histories, liked))
        added, _ = self._attended(states, histories, liked, vectors, items)
        return self._calibrated(taste @ vectors.T + added)

    def _calibrated(self, found: Array) -> Array:
        return np.asarray(expit(self._slope * found + self._offset), np.float32)

    def _chosen(self, scores: Array, items: NDArray[np.int64], own: NDArray[np.int64], top_k: int) -> NDArray[np.int64]:
        """The places of the candidates that are looked at closely."""
        wanted = max(RANKED, 4 * top_k)
        if len(scores) <= wanted:
            return np.arange(len(scores))
        best = np.argpartition(-scores, wanted)[:wanted]
        return np.union1d(best, np.flatnonzero(np.isin(items, own[own >= 0])))

    def _read(self, history: History) -> tuple[Array, Array]:
        """The taste (..., width) and the events' states (..., events, width)."""
        w = self._w
        *histories, events = history.items.shape
        if not events:
            return np.broadcast_to(w["taste.bias"], (*histories, self.width)), history.vectors
        states = self._linear("enter", history.vectors) + w["kinds.weight"][history.kinds]
        states = states + w["ages.weight"][age_of(history.ages)] + w["places.weight"][place_of(events)]
        for number in range(self._layers):
            states = self._block(f"blocks.{number}", states)
        states = self._norm("norm", states)
        weights = _softmax(self._linear("reader", states).swapaxes(-1, -2))
        parts = states.reshape(*histories, events, self._heads, -1)
        pooled = np.einsum("...he,...ehd->...hd", weights, parts).reshape(*histories, -1)
        return self._linear("taste", pooled), states

    def _block(self, name: str, states: Array) -> Array:
        normed = self._norm(f"{name}.attention_norm", states)
        query, key, value = (
            self._linear(f"{name}.attention.{part}", normed).reshape(*states.shape[:-1], self._heads, -1)
            for part in ("query", "key", "value")
        )
        query, key, value = (part.swapaxes(-2, -3) for part in (query, key, value))
        mixed = _softmax(query @ key.swapaxes(-1, -2) / np.float32(np.sqrt(query.shape[-1]))) @ value
        states = states + self._linear(f"{name}.attention.output", mixed.swapaxes(-2, -3).reshape(states.shape))
        inner = _gelu(self._linear(f"{name}.inner", self._norm(f"{name}.inner_norm", states)))
        return states + self._linear(f"{name}.output", inner)

    def _attended(
        self, states: Array, history: History, liked: NDArray[np.bool_], candidates: Array, numbers: NDArray[np.int64]
    ) -> tuple[Array, Array]:
        """What the candidates' own attention adds (..., candidates), and its part for each event (..., candidates,
        events).

        What a disliked event would have added is taken away, and its part is negative.
        """
        asked = self._linear("look", candidates).reshape(len(candidates), self._eyes, -1).transpose(1, 0, 2)
        *histories, events = history.items.shape
        added = np.zeros((*histories, len(candidates)), np.float32)
        weights = np.zeros((*histories, events, len(candidates)), np.float32)
        share = self._w["eyes"] / np.abs(self._w["eyes"]).sum()
        for chosen, sign in ((liked, np.float32(1)), (~liked, np.float32(-1))):
            if chosen.any():
                part = _part(history, chosen)
                energies = self._energies(states if sign > 0 else self._read(part)[1], part, asked, numbers)
                peak = np.maximum(energies.max(axis=-1, keepdims=True), 0)
                raised = np.exp(energies - peak)
                total = raised.sum(axis=-1, keepdims=True) + np.exp(-peak)
                added += sign * np.tensordot(self._w["eyes"], (np.log(total) + peak)[..., 0], axes=1)
                weights[chosen] = sign * np.einsum("h,h...ct->...tc", share, raised / total).reshape(
                    -1, len(candidates)
                )
                added += sign * self._w["often"][0] * np.log1p(_same(numbers, part.items).sum(axis=-1))
        return added, weights.swapaxes(-1, -2)

    def _energies(self, states: Array, history: History, asked: Array, numbers: NDArray[np.int64]) -> Array:
        """(eyes, ..., candidates, events); asked (eyes, candidates, eye)."""
        *histories, events = history.items.shape
        shown = np.moveaxis(self._linear("shown", states).reshape(*histories, events, self._eyes, -1), -2, 0)
        asked = asked.reshape(self._eyes, *(1 for _ in histories), *asked.shape[1:])
        strength, again = self._linear("strength", states), self._w["again"][age_of(history.ages)]
        energies = asked @ shown.swapaxes(-1, -2) / np.float32(np.sqrt(asked.shape[-1]))
        energies = energies + np.moveaxis(strength, -1, 0)[..., None, :]
        same: tuple[Any, ...] = np.nonzero(_same(numbers, history.items))
        energies[(slice(None), *same)] += again[(*same[:-2], same[-1])].T
        found: Array = energies
        return found

    def _linear(self, name: str, states: Array) -> Array:
        found: Array = states @ self._w[f"{name}.weight"].T + self._w[f"{name}.bias"]
        return found

    def _norm(self, name: str, states: Array) -> Array:
        centred = states - states.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(1e-5))
        found: Array = centred / spread * self._w[f"{name}.weight"] + self._w[f"{name}.bias"]
        return found


def load_recommender(bundle: Bundle) -> Recommender:
    """Raises BundleError when the bundle's weights are not those of a history model."""
    try:
        weights = load_file(bundle.path / WEIGHTS)
        content = json.loads((bundle.path / ITEMS).read_text(encoding="utf-8"))
        ids = {str(row["item_id"]): number for number, row in enumerate(content["items"]) if weights["known"][number]}
        return Recommender(weights, str(content["catalogue"]), ids)
    except (KeyError, TypeError, ValueError, OSError, IndexError, SafetensorError) as error:
        raise BundleError(
            f"bundle {bundle.path.name}: no history model can be read ({error!r}); export again"
        ) from error


def catalogue_of(bundle: Bundle) -> tuple[str, list[Entry], Array]:
    """The bundle's own catalogue: its name, its items, and their item vectors (items, width)."""
    content = json.loads((bundle.path / ITEMS).read_text(encoding="utf-8"))
    items = [Entry(**row) for row in content["items"]]
    return str(content["catalogue"]), items, load_file(bundle.path / ITEM_VECTORS)["vectors"]


def save_items(path: Path, catalogue: str, items: Sequence[Entry], vectors: Array) -> None:
    """Write a bundle's own catalogue into its folder."""
    content = {"catalogue": catalogue, "items": [asdict(item) for item in items]}
    (path / ITEMS).write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    save_file({"vectors": np.ascontiguousarray(vectors)}, path / ITEM_VECTORS)


def _part(history: History, chosen: NDArray[np.bool_]) -> History:
    """Of several histories, as many events of each."""
    histories = chosen.shape[:-1]
    return History(
        history.vectors[chosen].reshape(*histories, -1, history.vectors.shape[-1]),
        history.items[chosen].reshape(*histories, -1),
        history.kinds[chosen].reshape(*histories, -1),
        history.ages[chosen].reshape(*histories, -1),
    )


def _same(numbers: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(..., candidates, events): whether the event is of the candidate itself."""
    of = items[..., None, :]
    found: NDArray[np.bool_] = (numbers[:, None] == of) & (of >= 0)
    return found


def _softmax(scores: Array) -> Array:
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    found: Array = raised / raised.sum(axis=-1, keepdims=True)
    return found


def _gelu(values: Array) -> Array:
    found: Array = values * np.float32(0.5) * (1 + erf(values * np.float32(1 / np.sqrt(2))))
    return found
