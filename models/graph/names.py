"""The names of weights: those that a network has in training, transformers' BERT behind the attribute `encoder`, and
those under which graphs store them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

WORD_EMBEDDINGS, TYPE_EMBEDDINGS, POSITION_EMBEDDINGS = (
    f"encoder.embeddings.{kind}_embeddings.weight" for kind in ("word", "token_type", "position")
)
"""(pieces, width), (types, width) and (positions, width)."""

EMBEDDING_NORM = "encoder.embeddings.LayerNorm"
HEAD = "head"
HEAD_WEIGHT, HEAD_BIAS = f"{HEAD}.weight", f"{HEAD}.bias"

LOG_STEP = "log_step"
"""Beside a linear layer's weight: the logarithm of the step by which its input is rounded."""

WORDS_FP32, WORDS_INT8, WORDS_SCALE = "words", "words.q", "words.scale"
"""In a graph, the word embeddings: in fp32, or in 8 bits (pieces, width) with a scale for each row, (pieces, 1)."""

WEIGHT_INT8, SCALE = "q", "scale"
"""Beside a linear layer's name in a graph: its weight in whole numbers, and the scale of each output."""

STEP, LOWEST, HIGHEST = "step", "lowest", "highest"
"""Beside the same: the step by which its input is rounded, or the bounds to which it is cut."""


class LayerNames(NamedTuple):
    """The linear layers and norms of one encoder layer; a weight's name is one of these and `.weight` or `.bias`."""

    attention: str
    """Of queries, keys and values together."""

    attention_output: str
    attention_norm: str
    intermediate: str
    output: str
    output_norm: str

    @property
    def parts(self) -> tuple[str, str, str]:
        """Queries, keys and values, each on its own; a graph names their product by the first."""
        return f"{self.attention}.query", f"{self.attention}.key", f"{self.attention}.value"


def layer_names(number: int) -> LayerNames:
    layer = f"encoder.encoder.layer.{number}"
    return LayerNames(
        attention=f"{layer}.attention.self",
        attention_output=f"{layer}.attention.output.dense",
        attention_norm=f"{layer}.attention.output.LayerNorm",
        intermediate=f"{layer}.intermediate.dense",
        output=f"{layer}.output.dense",
        output_norm=f"{layer}.output.LayerNorm",
    )


def find_layers(weights: Collection[str]) -> Iterator[LayerNames]:
    """Those of every layer whose weights are among these, under their names in training, from the first."""
    number = 0
    while f"{(names := layer_names(number)).output_norm}.bias" in weights:
        yield names
        number += 1
