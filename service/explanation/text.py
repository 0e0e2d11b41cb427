"""In the thread that explains: one item's question to its outcome, by weights of words or by maps of attention.

What is wrong with one item is that item's problem; what is wrong with all of them is raised.
"""

from __future__ import annotations

import numpy as np
import structlog
from numpy.typing import NDArray

from models.explain.attention_maps import Maps
from models.explain.attribution import readers, rollout
from models.explain.explainer import AUTO, Explainer, by_part, explanation_of
from models.explain.instance import Question
from models.text.tokenizer import EmptyTextError
from service.errors import EmptyText, InferenceFailed, InvalidRequest, Problem, TooMuchToExplain
from service.explanation.request import Ask, Attention, Explained, GivenUp, Outcome, Wanted

_log = structlog.get_logger(__name__)

_PLACES = 4  # of an attention weight
_FAILED = "The model failed on this text."


def explained(explainer: Explainer, ask: Ask, wanted: Wanted, left: int) -> Outcome:
    """`left` is how many numbers its maps may have. Raises GivenUp, TooMuchToExplain."""
    try:
        question = ask(explainer)
        if not np.isfinite(list(question.scores.values())).all():
            return InferenceFailed(_FAILED)
        return _weighed(explainer, question, wanted, left)
    except EmptyTextError:
        return EmptyText("The text holds nothing that can be read.", pointer="/text")
    except (GivenUp, Problem):
        raise
    except Exception as error:  # of the runtime: this text's problem, as where it is answered
        _log.error("explaining failed", error=type(error).__name__)
        return InferenceFailed(_FAILED)


def check_graph(explainer: Explainer, wanted: Wanted) -> None:
    """Raises InvalidRequest for maps or gradients that the model does not have."""
    try:
        if wanted.method == "integrated_gradients":
            explainer.check_gradients()
        if not wanted.maps and wanted.method != "value_norm":
            return
        layers, heads = explainer.layers, explainer.heads
    except ValueError:  # a graph written by an older export, or by another
        raise InvalidRequest("The graph of this model does not show its attention.", pointer="/method") from None
    for name, asked, there in (("layer", wanted.layers, layers), ("head", wanted.heads or (), heads)):
        for place, number in enumerate(asked):
            if number >= there:
                reason = f"This model has {there} {name}s, 0 to {there - 1}."
                raise InvalidRequest(reason, pointer=f"/{name}s/{place}")


def _weighed(explainer: Explainer, question: Question, wanted: Wanted, left: int) -> Outcome:
    method, attention = wanted.method or AUTO, None
    turns: NDArray[np.float64] | None
    if wanted.maps:
        attention, shares = _attention(explainer, question, wanted, left)
        weights, turns = by_part(question, shares), None
        if len(question.reading.passages) > 1:
            turns = by_part(question.by_passage(), shares)
    else:
        weights = explainer.weigh(question, method)
        turns = explainer.weigh_turns(question, method, weights)
    if not all(np.isfinite(found).all() for found in (weights, turns) if found is not None):
        return InferenceFailed(_FAILED)
    explanation = explanation_of(question, method, weights, turns)
    tokens, read = question.tokens, len(question.reading.passages)
    return Explained(tokens.length, tokens.truncated, read, explanation, question.row, attention)


def _attention(
    explainer: Explainer, question: Question, wanted: Wanted, left: int
) -> tuple[Attention, NDArray[np.float32]]:
    """The maps, and what the answer takes from each token by them, in the mean, (length,)."""
    whole = wanted.reduce == "rollout"
    layers = tuple(range(explainer.layers)) if whole else wanted.layers
    heads = tuple(range(explainer.heads)) if wanted.heads is None else wanted.heads
    length = question.tokens.length
    shown = 1 if wanted.reduce else len(layers) * len(heads)
    if shown * length**2 > left:
        reason = f"The maps would be over {wanted.most_numbers} numbers, and one of this text is {length**2}; "
        raise TooMuchToExplain(reason + "ask for fewer texts, layers or heads.", pointer=wanted.pointer)
    found = explainer.maps(question)
    if whole:
        weights = rollout(found, np.eye(length, dtype=np.float32))[None, None]
    else:
        weights = _maps(found, layers, heads)
        if wanted.reduce == "mean":
            weights = weights.mean(axis=(0, 1), keepdims=True)
    shares = readers(question.tokens) @ weights.mean(axis=(0, 1))
    # Rounded, and laid out as it is written, here and not in the event loop.
    rounded = np.ascontiguousarray(weights.round(_PLACES))
    pieces = tuple(explainer.pieces(question))
    return Attention(explainer.layers, explainer.heads, pieces, layers, heads, wanted.reduce, rounded), shares


def _maps(found: Maps, layers: tuple[int, ...], heads: tuple[int, ...]) -> NDArray[np.float32]:
    return np.stack([found.attention(layer)[0][list(heads)] for layer in layers])
