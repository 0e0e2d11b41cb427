"""Explanations of text answers: a weight for each word, by any method of `models.explain.attribution`.

Signed methods treat the served score as a function of the words that are kept. A positive weight speaks for the target
label, a negative weight against it, in points of the calibrated probability. (In log-odds, an empty text's 6 % and a
neutral word's 1 % would be worlds apart.) Unsigned methods show where the network looks, which speaks for no label.
`models.evaluation.faithfulness` measures how far each method can be trusted.
Knows a bundle, its tokenizer, its heads and a runtime. Knows nothing of the web, and needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.explain.attention_maps import AttentionMapRuntime, AttentionMaps
from models.explain.attribution import METHODS, AttentionMethod, GradientMethod, pooling_weights
from models.explain.gradients import Gradients
from models.explain.instance import Instance, make_instance
from models.explain.methods import DEFAULT_METHOD, MethodName
from models.explain.score_functions import IntentConfidences, LabelProbabilities, ReplyScore, ScoreFunction
from models.prediction.intent_head import IntentHead
from models.prediction.reply_ranker import ReplyRanker
from models.runtime.offline import infer_all
from models.runtime.onnx import OnnxRuntime
from models.runtime.protocol import Runtime
from models.text.encoding import collate
from models.text.tokenizer import AlignedEncoding, Tokenizer, Turn

GRADIENT_TOKENS = 256
"""The number of tokens that one step of gradients reads."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class WordAttribution:
    """The weight of the word `text[start:end]`. With `is_entity` it names the entity, which is never removed."""

    start: int
    end: int
    weight: float
    is_entity: bool


@dataclass(frozen=True, slots=True)
class SegmentAttribution:
    """The weights of the words of a text or of a dialogue turn, and the span of it that was read.

    `weight` is the weight of the whole turn by the same method. It is None if there is only one segment.
    """

    words: tuple[WordAttribution, ...]
    read_span: tuple[int, int]
    weight: float | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """The attribution of one answer.

    `scores` are the calibrated probabilities by label. The `segments` of a dialogue are the turns that were read.
    `features` is the number of features. Words of one feature have equal weights, which sum to the feature's weight.
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
        """The only segment of a text, or the newest turn of a dialogue."""
        return self.segments[-1]


class UnnamedEntityError(ValueError):
    """A text that does not name the entity whose sentiment is to be explained."""


class Step(Protocol):
    """Runs a step of work, and decides when and whether to run it."""

    def __call__(self, work: Callable[[], Result]) -> Result: ...


def run_unpaced(work: Callable[[], Result]) -> Result:
    return work()


class Explainer:
    """Explains the answers of one bundle. The first use of maps or gradients loads them.

    The methods that make instances raise EmptyTextError, as the tokenizer does. Calls block, and two threads must not
    call at the same time. Long work outside the runtime goes through `step`, in small steps.
    """

    def __init__(self, bundle: Bundle, tokenizer: Tokenizer, runtime: Runtime, step: Step = run_unpaced) -> None:
        self._bundle, self._tokenizer, self._runtime, self._step = bundle, tokenizer, runtime, step

    def text_instance(
        self, text: str, entity: str | None = None, target: str | None = None, *, only_named: bool = False
    ) -> Instance:
        """Return the probability of `target`, or of the answer if it is None. Needs a bundle with labels.

        With `only_named`, raise UnnamedEntityError for a text that does not name the entity, before the model runs.
        """
        encoding = self._tokenizer.encode_with_words(text, entity)
        if only_named and not encoding.tokens.names_entity:
            raise UnnamedEntityError(f"the text does not name the entity {entity!r}")
        scaling = self._bundle.scaling(encoding.tokens.language, encoding.tokens.has_entity)
        labels = self._bundle.task.labels
        return self._make_instance(encoding, LabelProbabilities(scaling), labels, target)

    def intent_instance(self, turns: Sequence[Turn], head: IntentHead, target: str | None = None) -> Instance:
        """Return the head's confidence in `target`, or in its first intent if it is None. Needs a bundle of vectors."""
        return self._make_instance(self._encode_dialogue(turns), IntentConfidences(head), head.labels, target)

    def reply_instance(
        self, turns: Sequence[Turn], ranker: ReplyRanker, replies: Sequence[str], projected: NDArray[np.float32]
    ) -> Instance:
        """Return the score of the best of these replies, `projected` (replies, rank). Needs a bundle of vectors."""
        encoding, best = self._encode_dialogue(turns), 0
        if len(replies) > 1:
            (vector,) = infer_all(self._runtime, [encoding.tokens], self._tokenizer.pad_id)
            best = int(ranker.score_replies(vector, projected).argmax())
        return self._make_instance(encoding, ReplyScore(ranker, projected[best]), (replies[best],), None)

    def rebind(self, instance: Instance) -> Instance:
        """Return another explainer's instance bound to this one. The target stays, and its scores may change."""
        rows = infer_all(self._runtime, [instance.tokens], instance.pad)
        scores = dict(zip(instance.scores, instance.score_function(rows)[0].tolist(), strict=True))
        return replace(instance, runtime=self._runtime, row=rows[0], scores=scores)

    def attribute(self, instance: Instance, method: MethodName) -> NDArray[np.float64]:
        """Return one weight per feature of the instance, (features,)."""
        row = METHODS[method]
        if isinstance(row, GradientMethod):
            return row.attribute(partial(self._score_gradients, instance))
        if isinstance(row, AttentionMethod):
            shares = row.attribute(self.maps(instance), pooling_weights(instance.tokens))
            return attribute_to_features(instance, shares)
        return row.attribute(instance.score, len(instance.features))

    def attribute_turns(
        self, instance: Instance, method: MethodName, weights: NDArray[np.float64]
    ) -> NDArray[np.float64] | None:
        """Return one weight per segment by the same method, or None if there is only one segment.

        `weights` (features,) are the result of `attribute`. An additive method sums them, and any other method runs
        again with turns as features.
        """
        if len(instance.encoding.segments) == 1:
            return None
        if METHODS[method].additive:
            ends = np.cumsum([len(words.spans) for words in instance.encoding.segments])[:-1]
            return np.asarray([segment.sum() for segment in np.split(attribute_to_words(instance, weights), ends)])
        return self.attribute(instance.with_segments_as_features(), method)

    def explain(self, instance: Instance, method: MethodName = DEFAULT_METHOD) -> Explanation:
        weights = self.attribute(instance, method)
        turns = self.attribute_turns(instance, method, weights)
        return make_explanation(instance, method, weights, turns)

    def maps(self, instance: Instance) -> AttentionMaps:
        """Return the attention maps of all tokens that the model read."""
        return self._maps.run(collate([instance.tokens], self._tokenizer.pad_id))

    def token_strings(self, instance: Instance) -> list[str]:
        """Return the tokens as the tokenizer writes them."""
        return self._tokenizer.token_strings(instance.tokens)

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of single texts, (texts, width). Needs a bundle of vectors."""
        tokens = [self._tokenizer.encode(text) for text in texts]
        return infer_all(self._runtime, tokens, self._tokenizer.pad_id)

    def check_gradients(self) -> None:
        """Raise ValueError if gradients cannot be computed for the graph."""
        _ = self._gradients

    @property
    def layers(self) -> int:
        return self._maps.layers

    @property
    def heads(self) -> int:
        """The number of heads of the layer with the fewest."""
        return self._maps.heads

    @cached_property
    def _maps(self) -> AttentionMapRuntime:
        return AttentionMapRuntime(self._bundle.graph)

    @cached_property
    def _gradients(self) -> Gradients:
        return Gradients(self._bundle.graph)

    def _score_gradients(
        self, instance: Instance, shares: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Run `Instance.score_gradients` in steps, which bound the memory and let plain requests pass."""
        size = max(1, GRADIENT_TOKENS // instance.tokens.length)
        steps = [
            self._step(partial(instance.score_gradients, self._gradients, shares[first : first + size]))
            for first in range(0, len(shares), size)
        ]
        scores, gradients = zip(*steps, strict=True)
        return np.concatenate(scores), np.concatenate(gradients)

    def _encode_dialogue(self, turns: Sequence[Turn]) -> AlignedEncoding:
        return self._tokenizer.encode_dialogue_with_words(turns[-1].text, turns[:-1])

    def _make_instance(
        self, encoding: AlignedEncoding, score_function: ScoreFunction, labels: Sequence[str], target: str | None
    ) -> Instance:
        return make_instance(self._runtime, self._tokenizer.pad_id, encoding, score_function, labels, target)


def make_explanation(
    instance: Instance, method: MethodName, weights: NDArray[np.float64], turns: NDArray[np.float64] | None
) -> Explanation:
    """Return the explanation with these weights of the features, (features,), and of the segments, (segments,)."""
    by_word = attribute_to_words(instance, weights)
    segments, first = [], 0
    for index, words in enumerate(instance.encoding.segments):
        segment_weights = by_word[first : first + len(words.spans)].tolist()
        first += len(segment_weights)
        attributions = tuple(
            WordAttribution(start, end, weight, words.is_entity(word))
            for word, ((start, end), weight) in enumerate(zip(words.spans, segment_weights, strict=True))
        )
        segments.append(
            SegmentAttribution(attributions, words.read_span, None if turns is None else float(turns[index]))
        )
    return Explanation(
        method=method,
        signed=METHODS[method].signed,
        target=instance.target,
        scores=instance.scores,
        segments=tuple(segments),
        features=len(instance.features),
        truncated=instance.tokens.truncated,
    )


def attribute_to_words(instance: Instance, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spread the weights of features evenly over their words, (features,) to (words,), through all segments."""
    by_word = np.zeros(sum(len(words.spans) for words in instance.encoding.segments))
    for feature, weight in zip(instance.features, weights, strict=True):
        by_word[list(feature.words)] = weight / len(feature.words)
    return by_word


def attribute_to_features(instance: Instance, shares: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sum the shares of tokens by feature, (length,) to (features,)."""
    return np.asarray([shares[list(feature.positions)].sum() for feature in instance.features], np.float64)


def open_explainer(bundle: Bundle) -> Explainer:
    """Return an explainer that runs the bundle's CPU graph on one core, as the service does."""
    return Explainer(bundle, Tokenizer.from_bundle(bundle), OnnxRuntime(bundle.graph))
