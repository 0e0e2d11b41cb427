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

from models.explain.attention_maps import attentions
from models.graph.names import WHOLE, layer_names
from models.graph.protobuf import GRAPH, RAW, fields, initializers
from models.runtime.offline import rows_of
from models.runtime.onnx import open_session
from models.runtime.protocol import Runtime
from models.text.encoding import Batch, Tokens

Place = tuple[int, int]
"""A head: its layer, and its number there."""

STEPS = 12
"""In which heads are taken away together."""


class MaskedRuntime:
    """Runs a bundle's CPU graph without these heads."""

    def __init__(self, path: Path, gone: Sequence[Place]) -> None:
        model = bytearray(path.read_bytes())
        graph = next(value for number, value in fields(memoryview(model)) if number == GRAPH)
        heads = [attention.heads for attention in attentions(graph)]
        tensors = initializers(graph)
        for layer, head in gone:
            name = layer_names(layer).mixing
            tensor = tensors.get(name) or tensors[f"{name}.{WHOLE}"]
            raw = next(value for number, value in tensor if number == RAW)
            rows = len(raw) // heads[layer]
            raw[head * rows : (head + 1) * rows] = bytes(rows)
        self._session: Any = open_session(bytes(model), path.parent)

    def run(self, batch: Batch) -> NDArray[np.float32]:
        feeds = {"ids": batch.ids, "mask": batch.mask, "types": batch.types}
        rows: NDArray[np.float32] = self._session.run(None, feeds)[0]
        return rows


@dataclass(frozen=True, slots=True)
class Masked:
    """The answers without some heads, beside those with all of them.

    `changed` is the share of texts with another label, `moved` the mean change of their probabilities (half the sum of
    all differences), `accuracy` that on texts whose label is known, None without any.
    """

    heads: tuple[Place, ...]
    changed: float
    moved: float
    accuracy: float | None


Scores = Callable[[NDArray[np.float32]], NDArray[np.float64]]
"""Rows of the runtime, (texts, outputs), to the scores of all labels, (texts, labels)."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What is answered again and again: tokens, how each one's row is scored, and the right label's number or -1."""

    tokens: tuple[Tokens, ...]
    scored: tuple[Scores, ...]
    labels: NDArray[np.int64]
    pad: int

    def answers(self, runtime: Runtime) -> NDArray[np.float64]:
        """(texts, labels)."""
        rows = rows_of(runtime, self.tokens, self.pad)
        return np.concatenate([own(row[None]) for row, own in zip(rows, self.scored, strict=True)])


def each_head(graph: Path, texts: Texts, every: Sequence[Place]) -> Iterator[Masked]:
    """First nothing masked, then each head on its own."""
    whole = texts.answers(MaskedRuntime(graph, ()))
    yield masked((), texts, whole, whole)
    for place in every:
        yield masked((place,), texts, whole, texts.answers(MaskedRuntime(graph, (place,))))


def together(graph: Path, texts: Texts, order: Sequence[Place]) -> Iterator[Masked]:
    """More and more heads at once, in this order, up to all of them."""
    whole = texts.answers(MaskedRuntime(graph, ()))
    for count in sorted({round(len(order) * step / STEPS) for step in range(1, STEPS + 1)} - {0}):
        gone = tuple(order[:count])
        yield masked(gone, texts, whole, texts.answers(MaskedRuntime(graph, gone)))


def masked(heads: tuple[Place, ...], texts: Texts, whole: NDArray[np.float64], own: NDArray[np.float64]) -> Masked:
    chosen, known = own.argmax(axis=1), texts.labels >= 0
    return Masked(
        heads=heads,
        changed=float((chosen != whole.argmax(axis=1)).mean()),
        moved=float(np.abs(own - whole).sum(axis=1).mean() / 2),
        accuracy=float((chosen == texts.labels)[known].mean()) if known.any() else None,
    )
