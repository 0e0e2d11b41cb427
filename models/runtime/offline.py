"""Many texts or dialogues through a runtime at once, in batches of near lengths, and back in their order.

For commands, which have a machine to themselves; the service has its batcher.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.runtime.auto import open_runtime
from models.runtime.protocol import Device, Runtime
from models.text.encoding import Encoding, collate
from models.text.tokenizer import Tokenizer, Turn

BATCH_TOKENS = 1024


def infer_all(runtime: Runtime, tokens: Sequence[Encoding], pad: int) -> NDArray[np.float32]:
    """(texts, labels) or (texts, width), in the order given; batches are made of near lengths."""
    order = sorted(range(len(tokens)), key=lambda index: tokens[index].length)
    parts: list[NDArray[np.float32]] = []
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and tokens[order[end]].length * (end + 1 - start) <= BATCH_TOKENS:
            end += 1
        parts.append(runtime.run(collate([tokens[index] for index in order[start:end]], pad)))
        start = end
    rows = np.concatenate(parts)
    result = np.empty_like(rows)
    result[order] = rows
    return result


class TextEncoder:
    """Texts and dialogues to vectors."""

    def __init__(self, runtime: Runtime, tokenizer: Tokenizer) -> None:
        self._runtime, self._tokenizer = runtime, tokenizer

    def encode_dialogues(self, rows: Sequence[tuple[Turn, ...]]) -> NDArray[np.float32]:
        """Of each one's newest turn, (rows, width)."""
        tokens = [self._tokenizer.encode_dialogue(turns[-1].text, turns[:-1])[0] for turns in rows]
        return infer_all(self._runtime, tokens, self._tokenizer.pad_id)

    def encode_texts(self, rows: Sequence[str]) -> NDArray[np.float32]:
        """(texts, width)."""
        return infer_all(self._runtime, [self._tokenizer.encode(text) for text in rows], self._tokenizer.pad_id)


def open_text_encoder(bundle: Bundle, device: Device = "cpu") -> TextEncoder:
    """On the device, of a CPU on all cores; raises as `open_runtime`."""
    return TextEncoder(open_runtime(bundle, 0, device), Tokenizer.from_bundle(bundle))
