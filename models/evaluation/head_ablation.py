"""Ablation of attention heads: the served graph without some heads, and the change of its answers.

A head adds its result to the hidden state through its rows of one matrix. With zeros in these rows, the bytes are those
of a graph without the head. Knows how `models.explain.attention_maps` reads graphs.
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
"""The layer of a head, and its index there."""

STEPS = 12
"""The number of steps of a cumulative ablation."""


class AblatedRuntime:
    """Runs a bundle's CPU graph without the heads in `ablated`."""

    def __init__(self, path: Path, ablated: Sequence[HeadIndex]) -> None:
        model = bytearray(path.read_bytes())
        graph = next(value for number, value in read_fields(memoryview(model)) if number == GRAPH)
        heads = [node.heads for node in find_attention_nodes(graph)]
        tensors = read_initializers(graph)
        for layer, head in ablated:
            name = layer_names(layer).attention_output
            tensor = tensors.get(name) or tensors[f"{name}.{WEIGHT_INT8}"]
            raw = next(value for number, value in tensor if number == RAW)
            size = len(raw) // heads[layer]
            raw[head * size : (head + 1) * size] = bytes(size)
        self._session: Any = open_session(bytes(model), path.parent)

    def run(self, batch: Batch) -> NDArray[np.float32]:
        feeds = {"ids": batch.ids, "mask": batch.mask, "types": batch.token_types}
        rows: NDArray[np.float32] = self._session.run(None, feeds)[0]
        return rows


@dataclass(frozen=True, slots=True)
class AblationResult:
    """The answers without some heads, compared with those of the full model.

    `changed` is the share of texts with another label. `score_change` is the mean change of their probabilities, half
    the sum of all differences. `accuracy` is over the texts with a known label, and None if there are none.
    """

    heads: tuple[HeadIndex, ...]
    changed: float
    score_change: float
    accuracy: float | None


RowScores = Callable[[NDArray[np.float32]], NDArray[np.float64]]
"""Maps rows of the runtime, (texts, outputs), to the scores of all labels, (texts, labels)."""


@dataclass(frozen=True, slots=True)
class AblationTexts:
    """The texts of an ablation: their tokens, score functions, and the indices of their labels, -1 if unknown."""

    tokens: tuple[Encoding, ...]
    score_functions: tuple[RowScores, ...]
    labels: NDArray[np.int64]
    pad: int

    def scores(self, runtime: Runtime) -> NDArray[np.float64]:
        """Return the scores of all texts, (texts, labels)."""
        rows = infer_all(runtime, self.tokens, self.pad)
        return np.concatenate([function(row[None]) for row, function in zip(rows, self.score_functions, strict=True)])


def ablate_each_head(graph: Path, texts: AblationTexts, heads: Sequence[HeadIndex]) -> Iterator[AblationResult]:
    """Yield the result of the full model, then of each head removed alone."""
    full = texts.scores(AblatedRuntime(graph, ()))
    yield compare_ablated((), texts, full, full)
    for head in heads:
        yield compare_ablated((head,), texts, full, texts.scores(AblatedRuntime(graph, (head,))))


def ablate_cumulatively(graph: Path, texts: AblationTexts, order: Sequence[HeadIndex]) -> Iterator[AblationResult]:
    """Yield the results of removing more and more heads, in this order, up to all of them."""
    full = texts.scores(AblatedRuntime(graph, ()))
    for count in sorted({round(len(order) * step / STEPS) for step in range(1, STEPS + 1)} - {0}):
        ablated = tuple(order[:count])
        yield compare_ablated(ablated, texts, full, texts.scores(AblatedRuntime(graph, ablated)))


def compare_ablated(
    heads: tuple[HeadIndex, ...], texts: AblationTexts, full: NDArray[np.float64], ablated: NDArray[np.float64]
) -> AblationResult:
    """Compare the scores without `heads` with those of the full model, (texts, labels) each."""
    chosen, labelled = ablated.argmax(axis=1), texts.labels >= 0
    return AblationResult(
        heads=heads,
        changed=float((chosen != full.argmax(axis=1)).mean()),
        score_change=float(np.abs(ablated - full).sum(axis=1).mean() / 2),
        accuracy=float((chosen == texts.labels)[labelled].mean()) if labelled.any() else None,
    )
