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
from models.explain.attention_maps import AttentionMapRuntime, AttentionMaps
from models.explain.attribution import (
    PERMUTATIONS,
    attention_attribution,
    integrated_gradients,
    occlusion,
    pooling_weights,
    rollout,
    shapley,
    two_sided_occlusion,
    value_norm,
)
from models.explain.gradients import Gradients
from models.explain.instance import Instance, make_instance
from models.explain.score_functions import IntentConfidences, LabelProbabilities, ReplyScore, ScoreFunction
from models.prediction.intent_head import IntentHead
from models.prediction.reply_ranker import ReplyRanker
from models.runtime.offline import infer_all
from models.runtime.onnx import OnnxRuntime
from models.runtime.protocol import Runtime
from models.text.encoding import collate
from models.text.tokenizer import AlignedEncoding, Tokenizer, Turn

GRADIENT_TOKENS = 256
"""To take gradients of at once."""

Result = TypeVar("Result")
MethodName = Literal[
    "occlusion", "two_sided_occlusion", "shapley", "integrated_gradients", "value_norm", "rollout", "attention"
]


@dataclass(frozen=True, slots=True)
class Method:
    """`signed`: weights speak for or against the target; else they are shares of attention, at least 0."""

    signed: bool
    about: str


METHODS: dict[MethodName, Method] = {
    "occlusion": Method(True, "what is lost when a word alone is taken away"),
    "two_sided_occlusion": Method(True, "what a word changes in the whole text and on its own, the mean of both"),
    "shapley": Method(True, "what a word changes in the mean over texts that keep other words in random order"),
    "integrated_gradients": Method(True, "how fast the answer changes with a word, in the mean as all come in"),
    "value_norm": Method(False, "attention times the length of what it carries, the mean over layers"),
    "rollout": Method(False, "attention followed through all layers"),
    "attention": Method(False, "attention of the last layer"),
}
DEFAULT_METHOD: MethodName = "two_sided_occlusion"
"""Nearly as faithful as Shapley values, in a fraction of their time."""


@dataclass(frozen=True, slots=True)
class WordAttribution:
    """Of the word `text[start:end]`; `named` says that it is the entity asked about, which is never taken away."""

    start: int
    end: int
    weight: float
    is_entity: bool


@dataclass(frozen=True, slots=True)
class SegmentAttribution:
    """The text, or one turn of a dialogue: the weights of its words, and the part of it that was read.

    `weight` is that of the turn as a whole, by the same method; None where there is no other.
    """

    words: tuple[WordAttribution, ...]
    read_span: tuple[int, int]
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
    segments: tuple[SegmentAttribution, ...]
    features: int
    truncated: bool

    @property
    def text(self) -> SegmentAttribution:
        """Of a text, the only passage; of a dialogue, its newest turn."""
        return self.segments[-1]


class Step(Protocol):
    """How a piece of work is done: when, and whether."""

    def __call__(self, work: Callable[[], Result]) -> Result: ...


def run_step(work: Callable[[], Result]) -> Result:
    return work()


class Explainer:
    """Explains the answers of one bundle. Maps and gradients are loaded when they are first asked for.

    Questions raise EmptyTextError as the tokenizer does. Blocks; not to be called from two threads at once. What does
    not go through the runtime and takes long is done by `step`, piece by piece.
    """

    def __init__(self, bundle: Bundle, tokenizer: Tokenizer, runtime: Runtime, step: Step = run_step) -> None:
        self._bundle, self._tokenizer, self._runtime, self._step = bundle, tokenizer, runtime, step

    def text_instance(self, text: str, entity: str | None = None, target: str | None = None) -> Instance:
        """By a bundle with labels: why it says `target`, its answer unless a label is given."""
        reading = self._tokenizer.encode_with_words(text, entity)
        scaling = self._bundle.scaling(reading.tokens.language, reading.tokens.has_entity)
        labels = self._bundle.task.labels
        return self._ask(reading, LabelProbabilities(scaling), labels, target)

    def intent_instance(self, turns: Sequence[Turn], head: IntentHead, target: str | None = None) -> Instance:
        """By a bundle of vectors: why the head is so sure of an intent, of its first if none is given."""
        return self._ask(self._dialogue(turns), IntentConfidences(head), head.labels, target)

    def reply_instance(
        self, turns: Sequence[Turn], ranker: ReplyRanker, replies: Sequence[str], placed: NDArray[np.float32]
    ) -> Instance:
        """By a bundle of vectors: why the best of these replies, `placed` (replies, rank), scores as it does."""
        reading, best = self._dialogue(turns), 0
        if len(replies) > 1:
            (vector,) = infer_all(self._runtime, [reading.tokens], self._tokenizer.pad_id)
            best = int(ranker.score_replies(vector, placed).argmax())
        return self._ask(reading, ReplyScore(ranker, placed[best]), (replies[best],), None)

    def rebind(self, question: Instance) -> Instance:
        """The same question about the same target, of another explainer whose answers may differ, to this one."""
        rows = infer_all(self._runtime, [question.tokens], question.pad)
        scores = dict(zip(question.scores, question.scored(rows)[0].tolist(), strict=True))
        return replace(question, runtime=self._runtime, row=rows[0], scores=scores)

    def attribute(self, question: Instance, method: MethodName) -> NDArray[np.float64]:
        """One weight for each part of the question, (parts,)."""
        count = len(question.features)
        if method == "occlusion":
            return occlusion(question.score, count)
        if method == "two_sided_occlusion":
            return two_sided_occlusion(question.score, count)
        if method == "shapley":
            return shapley(question.score, count, PERMUTATIONS)
        if method == "integrated_gradients":
            return integrated_gradients(partial(self._slopes, question))
        taken = {"attention": attention_attribution, "rollout": rollout, "value_norm": value_norm}[method]
        return attribute_to_features(question, taken(self.maps(question), pooling_weights(question.tokens)))

    def attribute_turns(
        self, question: Instance, method: MethodName, weights: NDArray[np.float64]
    ) -> NDArray[np.float64] | None:
        """One weight for each passage, by the same method with turns as parts; None where there is but one.

        `weights` (parts,) are those of `weigh`. On the way on which all come in together a turn is its parts' sum.
        """
        if len(question.encoding.segments) == 1:
            return None
        if method == "integrated_gradients":
            ends = np.cumsum([len(words.spans) for words in question.encoding.segments])[:-1]
            return np.asarray([own.sum() for own in np.split(attribute_to_words(question, weights), ends)])
        return self.attribute(question.with_segments_as_features(), method)

    def explain(self, question: Instance, method: MethodName = DEFAULT_METHOD) -> Explanation:
        weights = self.attribute(question, method)
        turns = self.attribute_turns(question, method, weights)
        return explanation_of(question, method, weights, turns)

    def maps(self, question: Instance) -> AttentionMaps:
        """Of all that the question read."""
        return self._maps.run(collate([question.tokens], self._tokenizer.pad_id))

    def token_strings(self, question: Instance) -> list[str]:
        """What each token is, as the tokenizer writes it."""
        return self._tokenizer.token_strings(question.tokens)

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """By a bundle of vectors: of texts on their own, (texts, width)."""
        tokens = [self._tokenizer.encode(text) for text in texts]
        return infer_all(self._runtime, tokens, self._tokenizer.pad_id)

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
    def _maps(self) -> AttentionMapRuntime:
        return AttentionMapRuntime(self._bundle.graph)

    @cached_property
    def _gradients(self) -> Gradients:
        return Gradients(self._bundle.graph)

    def _slopes(
        self, question: Instance, shares: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """`Question.slopes`, of so many at a time that memory stays small and others can be given way."""
        size = max(1, GRADIENT_TOKENS // question.tokens.length)
        steps = [
            self._step(partial(question.score_gradients, self._gradients, shares[first : first + size]))
            for first in range(0, len(shares), size)
        ]
        values, slopes = zip(*steps, strict=True)
        return np.concatenate(values), np.concatenate(slopes)

    def _dialogue(self, turns: Sequence[Turn]) -> AlignedEncoding:
        return self._tokenizer.encode_dialogue_with_words(turns[-1].text, turns[:-1])

    def _ask(
        self, reading: AlignedEncoding, scored: ScoreFunction, labels: Sequence[str], target: str | None
    ) -> Instance:
        return make_instance(self._runtime, self._tokenizer.pad_id, reading, scored, labels, target)


def explanation_of(
    question: Instance, method: MethodName, weights: NDArray[np.float64], turns: NDArray[np.float64] | None
) -> Explanation:
    """With one weight for each part of the question, (parts,), and for each passage, (passages,), or None."""
    spread = attribute_to_words(question, weights)
    passages, first = [], 0
    for number, words in enumerate(question.encoding.segments):
        own = spread[first : first + len(words.spans)].tolist()
        first += len(own)
        weighed = tuple(
            WordAttribution(start, end, weight, words.is_entity(word))
            for word, ((start, end), weight) in enumerate(zip(words.spans, own, strict=True))
        )
        passages.append(SegmentAttribution(weighed, words.read_span, None if turns is None else float(turns[number])))
    return Explanation(
        method=method,
        signed=METHODS[method].signed,
        target=question.target,
        scores=question.scores,
        segments=tuple(passages),
        features=len(question.features),
        truncated=question.tokens.truncated,
    )


def attribute_to_words(question: Instance, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(parts,) to (words,), through all passages: what a part weighs is spread over its words."""
    spread = np.zeros(sum(len(words.spans) for words in question.encoding.segments))
    for part, weight in zip(question.features, weights, strict=True):
        spread[list(part.words)] = weight / len(part.words)
    return spread


def attribute_to_features(question: Instance, shares: NDArray[np.float32]) -> NDArray[np.float64]:
    """(length,) to (parts,): what the tokens of each part have together."""
    return np.asarray([shares[list(part.positions)].sum() for part in question.features], np.float64)


def open_explainer(bundle: Bundle) -> Explainer:
    """By its CPU graph, on one core, as the service has it."""
    return Explainer(bundle, Tokenizer.from_bundle(bundle), OnnxRuntime(bundle.graph))
