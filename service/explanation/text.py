"""The explanation of a text or a dialogue, by word attributions or attention maps, in the explanation thread.

A fault of one item is that item's problem. A fault of all of them is raised.
"""

from __future__ import annotations

import numpy as np
import structlog
from numpy.typing import NDArray

from models.explain.attention_maps import AttentionMaps
from models.explain.attribution import METHODS, pooling_weights, rollout
from models.explain.explainer import Explainer, UnnamedEntityError, attribute_to_features, make_explanation
from models.explain.instance import Instance
from models.explain.methods import DEFAULT_METHOD
from models.text.tokenizer import EmptyTextError
from service.errors import (
    EmptyText,
    EntityNotFound,
    ExplanationTooLarge,
    InferenceFailed,
    InvalidRequest,
    Problem,
    describe_fault,
)
from service.explanation.request import (
    Attention,
    ExplanationCancelled,
    ExplanationRequest,
    InstanceFactory,
    TextExplanation,
    TextOutcome,
)

_log = structlog.get_logger(__name__)

_DECIMALS = 4  # of an attention weight
_FAILED = "The model failed on this text."


def explain_text(
    explainer: Explainer, make_instance: InstanceFactory, request: ExplanationRequest, max_numbers: int
) -> TextOutcome:
    """Return the explanation of an item, or its problem. Its maps may have at most `max_numbers` numbers.

    Raises:
        ExplanationCancelled: The caller no longer waits.
        ExplanationTooLarge: The maps would have more numbers.
    """
    try:
        instance = make_instance(explainer)
        if not np.isfinite(list(instance.scores.values())).all():
            return InferenceFailed(_FAILED)
        return _explain_instance(explainer, instance, request, max_numbers)
    except EmptyTextError:
        return EmptyText("The text holds nothing that can be read.", pointer="/text")
    except UnnamedEntityError:
        return EntityNotFound(
            "The text does not name the entity. Write it as the text does, or leave it out.", pointer="/entity"
        )
    except (ExplanationCancelled, Problem):
        raise
    except Exception as error:  # an error of the runtime is this text's problem, as it is in the engine
        _log.error("explaining failed", **describe_fault(error))
        return InferenceFailed(_FAILED)


def check_graph(explainer: Explainer, request: ExplanationRequest) -> None:
    """Check that the graph has the requested maps or gradients.

    Raises:
        InvalidRequest: It has not.
    """
    try:
        method = METHODS[request.method or DEFAULT_METHOD]
        if method.needs_gradients:
            explainer.check_gradients()
        if not request.wants_maps and not method.needs_maps:
            return
        layers, heads = explainer.layers, explainer.heads
    except ValueError:  # an older or a foreign export wrote the graph
        raise InvalidRequest(
            "The graph of this model does not expose its attention. Choose another method.", pointer="/method"
        ) from None
    for name, requested, count in (("layer", request.layers, layers), ("head", request.heads or (), heads)):
        for index, number in enumerate(requested):
            if number >= count:
                reason = f"This model has {count} {name}s, 0 to {count - 1}."
                raise InvalidRequest(reason, pointer=f"/{name}s/{index}")


def _explain_instance(
    explainer: Explainer, instance: Instance, request: ExplanationRequest, max_numbers: int
) -> TextOutcome:
    method, attention = request.method or DEFAULT_METHOD, None
    turn_weights: NDArray[np.float64] | None
    if request.wants_maps:
        attention, shares = _attention(explainer, instance, request, max_numbers)
        weights, turn_weights = attribute_to_features(instance, shares), None
        if len(instance.encoding.segments) > 1:
            turn_weights = attribute_to_features(instance.with_segments_as_features(), shares)
    else:
        weights = explainer.attribute(instance, method)
        turn_weights = explainer.attribute_turns(instance, method, weights)
    if not all(np.isfinite(values).all() for values in (weights, turn_weights) if values is not None):
        return InferenceFailed(_FAILED)
    explanation = make_explanation(instance, method, weights, turn_weights)
    tokens, turns = instance.tokens, len(instance.encoding.segments)
    return TextExplanation(tokens.length, tokens.truncated, turns, explanation, instance.row, attention)


def _attention(
    explainer: Explainer, instance: Instance, request: ExplanationRequest, max_numbers: int
) -> tuple[Attention, NDArray[np.float32]]:
    """Return the maps, and the mean share (length,) that the answer takes from each token."""
    is_rollout = request.reduce == "rollout"
    layers = tuple(range(explainer.layers)) if is_rollout else request.layers
    heads = tuple(range(explainer.heads)) if request.heads is None else request.heads
    length = instance.tokens.length
    count = 1 if request.reduce else len(layers) * len(heads)
    if count * length**2 > max_numbers:
        reason = f"The maps would have over {request.max_numbers} numbers, and one map of this text has {length**2}. "
        raise ExplanationTooLarge(reason + "Request fewer texts, layers or heads.", pointer=request.pointer)
    maps = explainer.maps(instance)
    if is_rollout:
        weights = rollout(maps, np.eye(length, dtype=np.float32))[None, None]
    else:
        weights = _select_maps(maps, layers, heads)
        if request.reduce == "mean":
            weights = weights.mean(axis=(0, 1), keepdims=True)
    shares = pooling_weights(instance.tokens) @ weights.mean(axis=(0, 1))
    # Round, and make the layout that of the response, here and not in the event loop.
    rounded = np.ascontiguousarray(weights.round(_DECIMALS))
    tokens = tuple(explainer.token_strings(instance))
    return Attention(explainer.layers, explainer.heads, tokens, layers, heads, request.reduce, rounded), shares


def _select_maps(maps: AttentionMaps, layers: tuple[int, ...], heads: tuple[int, ...]) -> NDArray[np.float32]:
    return np.stack([maps.attention(layer)[0][list(heads)] for layer in layers])
