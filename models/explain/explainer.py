"""Which words an answer rests on: a weight for each word, from what changes when words are taken away or from maps.

The signed methods treat the served answer as a function of the words that are kept: a positive weight speaks for the
target label, a negative one against it, in points of its calibrated probability. (In log-odds, an empty text's 6 % and
a neutral word's 1 % would be worlds apart.) The others show where the network looks, which speaks for no label. How far
each is to be trusted is measured by `models.evaluation.faithfulness`.
Knows a bundle, its tokenizer, its heads and a runtime; nothing of the web. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.explain.attention_maps import MapRuntime, Maps
from models.explain.attribution import (
    ORDERS,
    attention,
    both_ends,
    integrated_gradients,
    occlusion,
    readers,
    rollout,
    shapley,
    value_norm,
)
from models.explain.gradients import Gradients
from models.explain.instance import Question, ask
from models.explain.score_functions import Answer, Fitting, Intents, Labelled
from models.prediction.intent_head import Head
from models.prediction.reply_ranker import Ranker
from models.runtime.offline import rows_of
from models.runtime.onnx import OnnxRuntime
from models.runtime.protocol import Runtime
from models.text.encoding import collate
from models.text.tokenizer import Reading, Tokenizer, Turn

GRADIENT_TOKENS = 256
"""To take gradients of at once."""

Result = TypeVar("Result")
MethodName = Literal["occlusion", "both_ends", "shapley", "integrated_gradients", "value_norm", "rollout", "attention"]


@dataclass(frozen=True, slots=True)
class Method:
    """`signed`: weights speak for or against the target; else they are shares of attention, at least 0."""

    signed: bool
    about: str


METHODS: dict[MethodName, Method] = {
    "occlusion": Method(True, "what is lost when a word alone is taken away"),
    "both_ends": Method(True, "what a word changes in the whole text and on its own, the mean of both"),
    "shapley": Method(True, "what a word changes in the mean over texts that keep other words in random order"),
    "integrated_gradients": Method(True, "how fast the answer changes with a word, in the mean as all come in"),
    "value_norm": Method(False, "attention times the length of what it carries, the mean over layers"),
    "rollout": Method(False, "attention followed through all layers"),
    "attention": Method(False, "attention of the last layer"),
}
AUTO: MethodName = "both_ends"
"""Nearly as faithful as Shapley values, in a fraction of their time."""


@dataclass(frozen=True, slots=True)
class Weight:
    """Of the word `text[start:end]`; `named` says that it is the entity asked about, which is never taken away."""

    start: int
    end: int
    weight: float
    named: bool


@dataclass(frozen=True, slots=True)
class Passage:
    """The text, or one turn of a dialogue: the weights of its words, and the part of it that was read.

    `weight` is that of the turn as a whole, by the same method; None where there is no other.
    """

    words: tuple[Weight, ...]
    read: tuple[int, int]
    weight: float | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """`scores` are the calibrated probabilities by label; of a dialogue, `passages` are the turns that were read.

    `parts` is how many parts the words were weighed in; words of one part have equal weights, which sum to its own.
    """

    method: MethodName
    signed: bool
    target: str
    scores: dict[str, float]
    passages: tuple[Passage, ...]
    parts: int
    truncated: bool

    @property
    def text(self) -> Passage:
        """Of a text, the only passage; of a dialogue, its newest turn."""
        return self.passages[-1]


class Step(Protocol):
    """How a piece of work is done: when, and whether."""

    def __call__(self, work: Callable[[], Result]) -> Result: ...


def at_once(work: Callable[[], Result]) -> Result:
    return work()


class Explainer:
    """Explains the answers of one bundle. Maps and gradients are loaded when they are first asked for.

    Questions raise EmptyTextError as the tokenizer does. Blocks; not to be called from two threads at once. What does
    not go through the runtime and takes long is done by `step`, piece by piece.
    """

    def __init__(self, bundle: Bundle, tokenizer: Tokenizer, runtime: Runtime, step: Step = at_once) -> None:
        self._bundle, self._tokenizer, self._runtime, self._step = bundle, tokenizer, runtime, step

    def text(self, text: str, entity: str | None = None, target: str | None = None) -> Question:
        """By a bundle with labels: why it says `target`, its answer unless a label is given."""
        reading = self._tokenizer.words(text, entity)
        scaling = self._bundle.scaling(reading.tokens.language, reading.tokens.targeted)
        labels = self._bundle.task.labels
        return self._ask(reading, Labelled(scaling), labels, target)

    def intent(self, turns: Sequence[Turn], head: Head, target: str | None = None) -> Question:
        """By a bundle of vectors: why the head is so sure of an intent, of its first if none is given."""
        return self._ask(self._dialogue(turns), Intents(head), head.labels, target)

    def reply(
        self, turns: Sequence[Turn], ranker: Ranker, replies: Sequence[str], placed: NDArray[np.float32]
    ) -> Question:
        """By a bundle of vectors: why the best of these replies, `placed` (replies, rank), scores as it does."""
        reading, best = self._dialogue(turns), 0
        if len(replies) > 1:
            (vector,) = rows_of(self._runtime, [reading.tokens], self._tokenizer.pad)
            best = int(ranker.scores(vector, placed).argmax())
        return self._ask(reading, Fitting(ranker, placed[best]), (replies[best],), None)

    def asked(self, question: Question) -> Question:
        """The same question about the same target, of another explainer whose answers may differ, to this one."""
        rows = rows_of(self._runtime, [question.tokens], question.pad)
        scores = dict(zip(question.scores, question.scored(rows)[0].tolist(), strict=True))
        return replace(question, runtime=self._runtime, row=rows[0], scores=scores)

    def weigh(self, question: Question, method: MethodName) -> NDArray[np.float64]:
        """One weight for each part of the question, (parts,)."""
        count = len(question.parts)
        if method == "occlusion":
            return occlusion(question.probability, count)
        if method == "both_ends":
            return both_ends(question.probability, count)
        if method == "shapley":
            return shapley(question.probability, count, ORDERS)
        if method == "integrated_gradients":
            return integrated_gradients(partial(self._slopes, question))
        taken = {"attention": attention, "rollout": rollout, "value_norm": value_norm}[method]
        return by_part(question, taken(self.maps(question), readers(question.tokens)))

    def weigh_turns(
        self, question: Question, method: MethodName, weights: NDArray[np.float64]
    ) -> NDArray[np.float64] | None:
        """One weight for each passage, by the same method with turns as parts; None where there is but one.

        `weights` (parts,) are those of `weigh`. On the way on which all come in together a turn is its parts' sum.
        """
        if len(question.reading.passages) == 1:
            return None
        if method == "integrated_gradients":
            ends = np.cumsum([len(words.spans) for words in question.reading.passages])[:-1]
            return np.asarray([own.sum() for own in np.split(by_word(question, weights), ends)])
        return self.weigh(question.by_passage(), method)

    def explain(self, question: Question, method: MethodName = AUTO) -> Explanation:
        weights = self.weigh(question, method)
        turns = self.weigh_turns(question, method, weights)
        return explanation_of(question, method, weights, turns)

    def maps(self, question: Question) -> Maps:
        """Of all that the question read."""
        return self._maps.run(collate([question.tokens], self._tokenizer.pad))

    def pieces(self, question: Question) -> list[str]:
        """What each token is, as the tokenizer writes it."""
        return self._tokenizer.pieces(question.tokens)

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """By a bundle of vectors: of texts on their own, (texts, width)."""
        tokens = [self._tokenizer.encode(text) for text in texts]
        return rows_of(self._runtime, tokens, self._tokenizer.pad)

    def check_gradients(self) -> None:
        """Raises ValueError where the graph is one that gradients cannot be taken of."""
        _ = self._gradients

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

    @cached_property
    def _gradients(self) -> Gradients:
        return Gradients(self._bundle.graph)

    def _slopes(
        self, question: Question, shares: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """`Question.slopes`, of so many at a time that memory stays small and others can be given way."""
        size = max(1, GRADIENT_TOKENS // question.tokens.length)
        steps = [
            self._step(partial(question.slopes, self._gradients, shares[first : first + size]))
            for first in range(0, len(shares), size)
        ]
        values, slopes = zip(*steps, strict=True)
        return np.concatenate(values), np.concatenate(slopes)

    def _dialogue(self, turns: Sequence[Turn]) -> Reading:
        return self._tokenizer.dialogue_words(turns[-1].text, turns[:-1])

    def _ask(self, reading: Reading, scored: Answer, labels: Sequence[str], target: str | None) -> Question:
        return ask(self._runtime, self._tokenizer.pad, reading, scored, labels, target)


def explanation_of(
    question: Question, method: MethodName, weights: NDArray[np.float64], turns: NDArray[np.float64] | None
) -> Explanation:
    """With one weight for each part of the question, (parts,), and for each passage, (passages,), or None."""
    spread = by_word(question, weights)
    passages, first = [], 0
    for number, words in enumerate(question.reading.passages):
        own = spread[first : first + len(words.spans)].tolist()
        first += len(own)
        weighed = tuple(
            Weight(start, end, weight, words.named(word))
            for word, ((start, end), weight) in enumerate(zip(words.spans, own, strict=True))
        )
        passages.append(Passage(weighed, words.read, None if turns is None else float(turns[number])))
    return Explanation(
        method=method,
        signed=METHODS[method].signed,
        target=question.target,
        scores=question.scores,
        passages=tuple(passages),
        parts=len(question.parts),
        truncated=question.tokens.truncated,
    )


def by_word(question: Question, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(parts,) to (words,), through all passages: what a part weighs is spread over its words."""
    spread = np.zeros(sum(len(words.spans) for words in question.reading.passages))
    for part, weight in zip(question.parts, weights, strict=True):
        spread[list(part.words)] = weight / len(part.words)
    return spread


def by_part(question: Question, shares: NDArray[np.float32]) -> NDArray[np.float64]:
    """(length,) to (parts,): what the tokens of each part have together."""
    return np.asarray([shares[list(part.places)].sum() for part in question.parts], np.float64)


def explainer_of(bundle: Bundle) -> Explainer:
    """By its CPU graph, on one core, as the service has it."""
    return Explainer(bundle, Tokenizer.from_bundle(bundle), OnnxRuntime(bundle.graph))
