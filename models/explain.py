"""Which words an answer rests on: a weight for each word, from what changes when words are taken away or from maps.

The signed methods treat the served answer as a function of the words that are kept: a positive weight speaks for the
target label, a negative one against it, in points of its calibrated probability. (In log-odds, an empty text's 6 % and
a neutral word's 1 % would be worlds apart.) The others show where the network looks, which speaks for no label. How far
each is to be trusted is measured by `models.faithfulness`.
Knows a bundle, its tokenizer and a runtime; nothing of the web. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.embed import rows_of
from models.maps import MapRuntime, Maps
from models.predict import Scaling, probabilities
from models.runtime import Runtime
from models.tokens import Tokenizer, Tokens, Words, collate

MethodName = Literal["occlusion", "both_ends", "shapley", "value_norm", "rollout", "attention"]

WORK_TOKENS = 16_384
"""To read for one explanation by `occlusion`: a long text is weighed in fewer parts, of neighbouring words together."""

ORDERS = 10
"""In which Shapley values are sampled, in pairs of one order and its reverse."""

Value = Callable[[NDArray[np.bool_]], NDArray[np.float64]]
"""Which parts of a text are kept, (variants, parts), to the value of each variant, (variants,)."""


@dataclass(frozen=True, slots=True)
class Method:
    """`signed`: weights speak for or against the target; else they are shares of attention, at least 0."""

    signed: bool
    about: str


METHODS: dict[MethodName, Method] = {
    "occlusion": Method(True, "what is lost when a word alone is taken away"),
    "both_ends": Method(True, "what a word changes in the whole text and on its own, the mean of both"),
    "shapley": Method(True, "what a word changes in the mean over texts that keep other words in random order"),
    "value_norm": Method(False, "attention times the length of what it carries, the mean over layers"),
    "rollout": Method(False, "attention followed through all layers"),
    "attention": Method(False, "attention of the last layer"),
}
AUTO: MethodName = "both_ends"
"""Nearly as faithful as Shapley values, in a fraction of their time."""

OFFERED: tuple[MethodName, ...] = ("both_ends", "occlusion", "shapley", "value_norm")
"""Those whose heaviest words lose an answer at least three times as much as random ones; the rest is for comparison."""


@dataclass(frozen=True, slots=True)
class Weight:
    """Of the word `text[start:end]`; `named` says that it is the entity asked about, which is never taken away."""

    start: int
    end: int
    weight: float
    named: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """`scores` are the calibrated probabilities by label; `read` is the part of the text that was read.

    `parts` is how many parts the words were weighed in; words of one part have equal weights, which sum to its own.
    """

    method: MethodName
    signed: bool
    target: str
    scores: dict[str, float]
    weights: tuple[Weight, ...]
    parts: int
    read: tuple[int, int]
    truncated: bool


@dataclass(frozen=True, slots=True)
class Part:
    """Words that are kept or taken away together, and the positions of their tokens."""

    words: tuple[int, ...]
    places: tuple[int, ...]


class Explainer:
    """Explains the answers of one bundle with labels. Maps are loaded when they are first asked for.

    Blocks; not to be called from two threads at once.
    """

    def __init__(self, bundle: Bundle, tokenizer: Tokenizer, runtime: Runtime) -> None:
        self._bundle, self._tokenizer, self._runtime = bundle, tokenizer, runtime

    def explain(
        self, text: str, entity: str | None = None, method: MethodName = AUTO, target: str | None = None
    ) -> Explanation:
        """The target is the answer itself unless a label is given; raises EmptyTextError as the tokenizer does."""
        question = self.question(text, entity, target)
        return explanation_of(question, method, self.weigh(question, method))

    def question(self, text: str, entity: str | None = None, target: str | None = None) -> Question:
        words = self._tokenizer.words(text, entity)
        scaling = self._bundle.scaling(words.tokens.language, words.tokens.targeted)
        return Question(self._runtime, self._tokenizer.pad, words, scaling, self._bundle.task.labels, target)

    def weigh(self, question: Question, method: MethodName) -> NDArray[np.float64]:
        """One weight for each part of the question, (parts,)."""
        count = len(question.parts)
        if method == "occlusion":
            return occlusion(question.probability, count)
        if method == "both_ends":
            return both_ends(question.probability, count)
        if method == "shapley":
            return shapley(question.probability, count, ORDERS)
        taken = {"attention": attention, "rollout": rollout, "value_norm": value_norm}[method]
        return by_part(question, taken(self.maps(question), readers(question.words.tokens)))

    def maps(self, question: Question) -> Maps:
        """Of the question's whole text."""
        return self._maps.run(collate([question.words.tokens], self._tokenizer.pad))

    @property
    def layers(self) -> int:
        return self._maps.layers

    @property
    def heads(self) -> int:
        """Of the layer that has fewest."""
        return self._maps.heads

    @cached_property
    def _maps(self) -> MapRuntime:
        return MapRuntime(self._bundle.graph)


class Question:
    """One text, a target label and the parts of the text that can be taken away from it."""

    def __init__(
        self, runtime: Runtime, pad: int, words: Words, scaling: Scaling, labels: Sequence[str], target: str | None
    ) -> None:
        self.words, self.parts = words, parts_of(words, WORK_TOKENS // words.tokens.length)
        self._runtime, self._pad, self._scaling = runtime, pad, scaling
        whole = self._answers([words.tokens])[0]
        self.scores = dict(zip(labels, whole.tolist(), strict=True))
        self.target = target if target is not None else max(self.scores, key=self.scores.__getitem__)
        self._label = labels.index(self.target)

    def probability(self, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The target's calibrated probability for each variant, (variants, parts) to (variants,)."""
        different, which = np.unique(kept, axis=0, return_inverse=True)
        answers = self._answers([without(self.words.tokens, self._hidden(row)) for row in different])
        return np.asarray(answers[which, self._label])

    def _hidden(self, kept: NDArray[np.bool_]) -> list[int]:
        return [place for part, stays in zip(self.parts, kept, strict=True) if not stays for place in part.places]

    def _answers(self, variants: Sequence[Tokens]) -> NDArray[np.float64]:
        return probabilities(rows_of(self._runtime, variants, self._pad), self._scaling)


def explanation_of(question: Question, method: MethodName, weights: NDArray[np.float64]) -> Explanation:
    """With one weight for each part of the question, (parts,)."""
    words = question.words
    spread = np.zeros(len(words.spans))
    for part, weight in zip(question.parts, weights, strict=True):
        spread[list(part.words)] = weight / len(part.words)
    return Explanation(
        method=method,
        signed=METHODS[method].signed,
        target=question.target,
        scores=question.scores,
        weights=tuple(
            Weight(start, end, float(weight), words.named(word))
            for word, ((start, end), weight) in enumerate(zip(words.spans, spread, strict=True))
        ),
        parts=len(question.parts),
        read=words.read,
        truncated=words.tokens.truncated,
    )


def by_part(question: Question, shares: NDArray[np.float32]) -> NDArray[np.float64]:
    """(length,) to (parts,): what the tokens of each part have together."""
    return np.asarray([shares[list(part.places)].sum() for part in question.parts], np.float64)


def parts_of(words: Words, limit: int) -> tuple[Part, ...]:
    """The words that can be taken away: not those of the entity, nor what the tokenizer keeps nothing of.

    Words that share a token go together, and so do neighbours where there would be more than `limit` parts.
    """
    parts: list[Part] = []
    for word, places in enumerate(words.places):
        if parts and set(places) & set(parts[-1].places):
            parts[-1] = joined([parts[-1], Part((word,), places)])
        elif places:
            parts.append(Part((word,), places))
    free = [part for part in parts if not any(words.named(word) for word in part.words)]
    size = -(-len(free) // limit)
    return tuple(joined(free[first : first + size]) for first in range(0, len(free), max(size, 1)))


def joined(parts: Sequence[Part]) -> Part:
    places = {place for part in parts for place in part.places}
    return Part(tuple(word for part in parts for word in part.words), tuple(sorted(places)))


def without(tokens: Tokens, places: Sequence[int]) -> Tokens:
    """The tokens that are left when those at `places` are taken out."""
    left = np.ones(tokens.length, np.bool_)
    left[list(places)] = False
    return Tokens(tokens.ids[left], tokens.types[left], tokens.truncated, tokens.language)


def occlusion(value: Value, parts: int) -> NDArray[np.float64]:
    """(parts,): what the value loses without each part (Zeiler & Fergus 2014; leave one out)."""
    values = value(np.vstack([np.ones((1, parts), np.bool_), ~np.eye(parts, dtype=np.bool_)]))
    return np.asarray(values[0] - values[1:])


def both_ends(value: Value, parts: int) -> NDArray[np.float64]:
    """(parts,): the mean of what each part changes last, in the whole text, and first, when nothing else is kept.

    These are the two ends of every order that Shapley values are the mean over. One end alone misses what a text says
    twice, since either word can go, the other what only words together say.
    """
    alone = np.eye(parts, dtype=np.bool_)
    values = value(np.vstack([np.zeros((1, parts), np.bool_), alone]))
    return np.asarray((occlusion(value, parts) + values[1:] - values[0]) / 2)


def shapley(value: Value, parts: int, orders: int) -> NDArray[np.float64]:
    """(parts,): what each part adds, in the mean over random orders in which parts come in (Castro et al. 2009).

    Every other order is the one before reversed, which makes the mean steadier (Mitchell et al. 2022). Weights sum to
    the value of the whole less that of nothing. The orders are the same every time.
    """
    chance = np.random.default_rng(0)
    drawn = [chance.permutation(parts) for _ in range(orders // 2)]
    every = [order for one in drawn for order in (one, one[::-1])]
    kept = np.zeros((len(every), parts + 1, parts), np.bool_)
    for number, order in enumerate(every):
        kept[number][:, order] = np.tri(parts + 1, parts, -1, dtype=np.bool_)
    values = value(kept.reshape(-1, parts)).reshape(len(every), parts + 1)
    added = np.zeros(parts)
    for order, along in zip(every, values, strict=True):
        added[order] += np.diff(along) / len(every)
    return added


def readers(tokens: Tokens) -> NDArray[np.float32]:
    """(length,): the share that the answer takes of each token's last state, as `models.network.pool`."""
    chosen = tokens.types if tokens.targeted else np.ones_like(tokens.types)
    return np.asarray(chosen / chosen.sum(), np.float32)


def attention(maps: Maps, readers: NDArray[np.float32]) -> NDArray[np.float32]:
    """(length,): what the answer takes from each token in the last layer, in the mean over heads. Of one text."""
    return np.asarray(readers @ maps.attention(maps.layers - 1)[0].mean(axis=0))


def value_norm(maps: Maps, readers: NDArray[np.float32]) -> NDArray[np.float32]:
    """(length,): attention times the length of what it carries (Kobayashi et al. 2020), in the mean over layers."""
    shares = []
    for layer in range(maps.layers):
        carried = (maps.attention(layer)[0] * maps.value_norms(layer)[0][:, None, :]).mean(axis=0)
        shares.append(readers @ (carried / carried.sum(axis=-1, keepdims=True)))
    return np.asarray(np.mean(shares, axis=0))


def rollout(maps: Maps, readers: NDArray[np.float32]) -> NDArray[np.float32]:
    """(length,): attention followed from the answer down to the input (Abnar & Zuidema 2020).

    In every layer half of a token comes from itself, past the attention.
    """
    shares: NDArray[np.float32] = readers
    for layer in reversed(range(maps.layers)):
        shares = np.asarray((shares + shares @ maps.attention(layer)[0].mean(axis=0)) / 2)
    return shares
