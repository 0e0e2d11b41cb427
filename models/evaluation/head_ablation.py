"""The served graph without some of its attention heads, and what its answers lose: which heads it can do without.

A head's result goes into the hidden state through its own rows of one matrix; with these at zero, the bytes of the
graph are those of a graph without the head. Knows how `models.explain.attention_maps` reads graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.explain.attention_maps import find_attention_nodes
from models.graph.names import WEIGHT_INT8, layer_names
from models.graph.protobuf import GRAPH, RAW, read_fields, read_initializers
from models.runtime.offline import infer_all
from models.runtime.onnx import open_session
from models.runtime.protocol import Runtime
from models.text.encoding import Batch, Encoding

HeadIndex = tuple[int, int]
"""A head: its layer, and its number there."""

STEPS = 12
"""In which heads are taken away together."""


class AblatedRuntime:
    """Runs a bundle's CPU graph without these heads."""

    def __init__(self, path: Path, gone: Sequence[HeadIndex]) -> None:
        model = bytearray(path.read_bytes())
        graph = next(value for number, value in read_fields(memoryview(model)) if number == GRAPH)
        heads = [attention.heads for attention in find_attention_nodes(graph)]
        tensors = read_initializers(graph)
        for layer, head in gone:
            name = layer_names(layer).attention_output
            tensor = tensors.get(name) or tensors[f"{name}.{WEIGHT_INT8}"]
            raw = next(value for number, value in tensor if number == RAW)
            rows = len(raw) // heads[layer]
            raw[head * rows : (head + 1) * rows] = bytes(rows)
        self._session: Any = open_session(bytes(model), path.parent)

    def run(self, batch: Batch) -> NDArray[np.float32]:
        feeds = {"ids": batch.ids, "mask": batch.mask, "types": batch.token_types}
        rows: NDArray[np.float32] = self._session.run(None, feeds)[0]
        return rows


@dataclass(frozen=True, slots=True)
class AblationResult:
    """The answers without some heads, beside those with all of them.

    `changed` is the share of texts with another label, `moved` the mean change of their probabilities (half the sum of
    all differences), `accuracy` that on texts whose label is known, None without any.
    """

    heads: tuple[HeadIndex, ...]
    changed: float
    score_change: float
    accuracy: float | None


Scores = Callable[[NDArray[np.float32]], NDArray[np.float64]]
"""Rows of the runtime, (texts, outputs), to the scores of all labels, (texts, labels)."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What is answered again and again: tokens, how each one's row is scored, and the right label's number or -1."""

    tokens: tuple[Encoding, ...]
    scored: tuple[Scores, ...]
    labels: NDArray[np.int64]
    pad: int

    def answers(self, runtime: Runtime) -> NDArray[np.float64]:
        """(texts, labels)."""
        rows = infer_all(runtime, self.tokens, self.pad)
        return np.concatenate([own(row[None]) for row, own in zip(rows, self.scored, strict=True)])


def ablate_each_head(graph: Path, texts: Texts, every: Sequence[HeadIndex]) -> Iterator[AblationResult]:
    """First nothing masked, then each head on its own."""
    whole = texts.answers(AblatedRuntime(graph, ()))
    yield compare_ablated((), texts, whole, whole)
    for place in every:
        yield compare_ablated((place,), texts, whole, texts.answers(AblatedRuntime(graph, (place,))))


def ablate_cumulatively(graph: Path, texts: Texts, order: Sequence[HeadIndex]) -> Iterator[AblationResult]:
    """More and more heads at once, in this order, up to all of them."""
    whole = texts.answers(AblatedRuntime(graph, ()))
    for count in sorted({round(len(order) * step / STEPS) for step in range(1, STEPS + 1)} - {0}):
        gone = tuple(order[:count])
        yield compare_ablated(gone, texts, whole, texts.answers(AblatedRuntime(graph, gone)))


def compare_ablated(
    heads: tuple[HeadIndex, ...], texts: Texts, whole: NDArray[np.float64], own: NDArray[np.float64]
) -> AblationResult:
    chosen, known = own.argmax(axis=1), texts.labels >= 0
    return AblationResult(
        heads=heads,
        changed=float((chosen != whole.argmax(axis=1)).mean()),
        score_change=float(np.abs(own - whole).sum(axis=1).mean() / 2),
        accuracy=float((chosen == texts.labels)[known].mean()) if known.any() else None,
    )
