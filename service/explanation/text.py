"""In the thread that explains: one item's question to its outcome, by weights of words or by maps of attention.

What is wrong with one item is that item's problem; what is wrong with all of them is raised.
"""

from __future__ import annotations

import numpy as np
import structlog
from numpy.typing import NDArray

from models.explain.attention_maps import AttentionMaps
from models.explain.attribution import METHODS, pooling_weights, rollout
from models.explain.explainer import Explainer, attribute_to_features, make_explanation
from models.explain.instance import Instance
from models.explain.methods import DEFAULT_METHOD
from models.text.tokenizer import EmptyTextError
from service.errors import EmptyText, ExplanationTooLarge, InferenceFailed, InvalidRequest, Problem
from service.explanation.request import (
    Attention,
    ExplanationCancelled,
    ExplanationRequest,
    InstanceFactory,
    Outcome,
    TextExplanation,
)

_log = structlog.get_logger(__name__)

_PLACES = 4  # of an attention weight
_FAILED = "The model failed on this text."


def explain_text(explainer: Explainer, ask: InstanceFactory, wanted: ExplanationRequest, left: int) -> Outcome:
    """`left` is how many numbers its maps may have. Raises GivenUp, TooMuchToExplain."""
    try:
        question = ask(explainer)
        if not np.isfinite(list(question.scores.values())).all():
            return InferenceFailed(_FAILED)
        return _weighed(explainer, question, wanted, left)
    except EmptyTextError:
        return EmptyText("The text holds nothing that can be read.", pointer="/text")
    except (ExplanationCancelled, Problem):
        raise
    except Exception as error:  # of the runtime: this text's problem, as where it is answered
        _log.error("explaining failed", error=type(error).__name__)
        return InferenceFailed(_FAILED)


def check_graph(explainer: Explainer, wanted: ExplanationRequest) -> None:
    """Raises InvalidRequest for maps or gradients that the model does not have."""
    try:
        method = METHODS[wanted.method or DEFAULT_METHOD]
        if method.needs_gradients:
            explainer.check_gradients()
        if not wanted.maps and not method.needs_maps:
            return
        layers, heads = explainer.layers, explainer.heads
    except ValueError:  # a graph written by an older export, or by another
        raise InvalidRequest("The graph of this model does not show its attention.", pointer="/method") from None
    for name, asked, there in (("layer", wanted.layers, layers), ("head", wanted.heads or (), heads)):
        for place, number in enumerate(asked):
            if number >= there:
                reason = f"This model has {there} {name}s, 0 to {there - 1}."
                raise InvalidRequest(reason, pointer=f"/{name}s/{place}")


def _weighed(explainer: Explainer, question: Instance, wanted: ExplanationRequest, left: int) -> Outcome:
    method, attention = wanted.method or DEFAULT_METHOD, None
    turns: NDArray[np.float64] | None
    if wanted.maps:
        attention, shares = _attention(explainer, question, wanted, left)
        weights, turns = attribute_to_features(question, shares), None
        if len(question.encoding.segments) > 1:
            turns = attribute_to_features(question.with_segments_as_features(), shares)
    else:
        weights = explainer.attribute(question, method)
        turns = explainer.attribute_turns(question, method, weights)
    if not all(np.isfinite(found).all() for found in (weights, turns) if found is not None):
        return InferenceFailed(_FAILED)
    explanation = make_explanation(question, method, weights, turns)
    tokens, read = question.tokens, len(question.encoding.segments)
    return TextExplanation(tokens.length, tokens.truncated, read, explanation, question.row, attention)


def _attention(
    explainer: Explainer, question: Instance, wanted: ExplanationRequest, left: int
) -> tuple[Attention, NDArray[np.float32]]:
    """The maps, and what the answer takes from each token by them, in the mean, (length,)."""
    whole = wanted.reduce == "rollout"
    layers = tuple(range(explainer.layers)) if whole else wanted.layers
    heads = tuple(range(explainer.heads)) if wanted.heads is None else wanted.heads
    length = question.tokens.length
    shown = 1 if wanted.reduce else len(layers) * len(heads)
    if shown * length**2 > left:
        reason = f"The maps would be over {wanted.max_numbers} numbers, and one of this text is {length**2}; "
        raise ExplanationTooLarge(reason + "ask for fewer texts, layers or heads.", pointer=wanted.pointer)
    found = explainer.maps(question)
    if whole:
        weights = rollout(found, np.eye(length, dtype=np.float32))[None, None]
    else:
        weights = _maps(found, layers, heads)
        if wanted.reduce == "mean":
            weights = weights.mean(axis=(0, 1), keepdims=True)
    shares = pooling_weights(question.tokens) @ weights.mean(axis=(0, 1))
    # Rounded, and laid out as it is written, here and not in the event loop.
    rounded = np.ascontiguousarray(weights.round(_PLACES))
    pieces = tuple(explainer.token_strings(question))
    return Attention(explainer.layers, explainer.heads, pieces, layers, heads, wanted.reduce, rounded), shares


def _maps(found: AttentionMaps, layers: tuple[int, ...], heads: tuple[int, ...]) -> NDArray[np.float32]:
    return np.stack([found.attention(layer)[0][list(heads)] for layer in layers])
