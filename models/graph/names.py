"""Names of weights, in training and in graphs, and of the outputs of graphs.

In training they are those of transformers' BERT behind the attribute `encoder`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

WORD_EMBEDDINGS, TYPE_EMBEDDINGS, POSITION_EMBEDDINGS = (
    f"encoder.embeddings.{kind}_embeddings.weight" for kind in ("word", "token_type", "position")
)
"""Embeddings of the shapes (vocabulary, width), (types, width) and (positions, width)."""

EMBEDDING_NORM = "encoder.embeddings.LayerNorm"
HEAD = "head"
HEAD_WEIGHT, HEAD_BIAS = f"{HEAD}.weight", f"{HEAD}.bias"

LOGITS, VECTORS = "logits", "vectors"
"""Outputs of a graph. A classifier has `logits` (batch, labels) first. Every graph has `vectors` (batch, width)."""

LOG_STEP = "log_step"
"""The suffix of a linear layer for the logarithm of the step by which its input is rounded."""

WORDS_FP32, WORDS_INT8, WORDS_SCALE = "words", "words.q", "words.scale"
"""Word embeddings in a graph: in fp32, or in 8 bits (vocabulary, width) with a scale per row, (vocabulary, 1)."""

WEIGHT_INT8, SCALE = "q", "scale"
"""Suffixes of a linear layer in a graph, for its int8 weight and the scale of each output."""

STEP, LOWEST, HIGHEST = "step", "lowest", "highest"
"""Suffixes of a linear layer in a graph, for the step that rounds its input, or the bounds that clip it."""


class LayerNames(NamedTuple):
    """Names of the linear layers and norms of an encoder layer, to which weights add `.weight` or `.bias`."""

    attention: str
    """The prefix of queries, keys and values."""

    attention_output: str
    attention_norm: str
    intermediate: str
    output: str
    output_norm: str

    @property
    def parts(self) -> tuple[str, str, str]:
        """The names of queries, keys and values; a graph names their joint product by the first."""
        return f"{self.attention}.query", f"{self.attention}.key", f"{self.attention}.value"


def layer_names(index: int) -> LayerNames:
    layer = f"encoder.encoder.layer.{index}"
    return LayerNames(
        attention=f"{layer}.attention.self",
        attention_output=f"{layer}.attention.output.dense",
        attention_norm=f"{layer}.attention.output.LayerNorm",
        intermediate=f"{layer}.intermediate.dense",
        output=f"{layer}.output.dense",
        output_norm=f"{layer}.output.LayerNorm",
    )


def find_layers(weights: Collection[str]) -> Iterator[LayerNames]:
    """Yield the names of each layer, in order, whose weights are among `weights`."""
    index = 0
    while f"{(names := layer_names(index)).output_norm}.bias" in weights:
        yield names
        index += 1
