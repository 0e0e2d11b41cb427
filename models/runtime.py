"""What every runtime offers: one padded batch in, logits out.

The two runtimes are sibling files: `runtime_onnx` serves, `runtime_torch` is what the exported graph is held to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.tokens import Batch, Tokens, collate

BATCH_TOKENS = 1024
"""Padded, in one batch of many texts that are all there at once."""


class Runtime(Protocol):
    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Logits of shape (batch, labels). Blocks; not to be called from two threads at once."""
        ...


def logits_of(runtime: Runtime, tokens: Sequence[Tokens], pad: int) -> NDArray[np.float32]:
    """(texts, labels), in the order given; batches are made of near lengths."""
    order = sorted(range(len(tokens)), key=lambda index: tokens[index].length)
    parts: list[NDArray[np.float32]] = []
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and tokens[order[end]].length * (end + 1 - start) <= BATCH_TOKENS:
            end += 1
        parts.append(runtime.run(collate([tokens[index] for index in order[start:end]], pad)))
        start = end
    logits = np.concatenate(parts)
    result = np.empty_like(logits)
    result[order] = logits
    return result
