"""Offline inference: all texts or dialogues of a data set, in batches of similar lengths, returned in order.

It is for commands, which have the machine to themselves. The service uses its batcher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.runtime.auto import open_runtime
from models.runtime.protocol import Device, Runtime, VectorRuntime
from models.text.encoding import Batch, Encoding, collate
from models.text.tokenizer import Tokenizer, Turn

BATCH_TOKENS = 1024


def infer_all(runtime: Runtime, encodings: Sequence[Encoding], pad_id: int) -> NDArray[np.float32]:
    """Return logits (texts, labels) or vectors (texts, width), in the order of the encodings."""
    return _run_in_batches(runtime.run, encodings, pad_id)


def infer_vectors(runtime: VectorRuntime, encodings: Sequence[Encoding], pad_id: int) -> NDArray[np.float32]:
    """Return the vectors (texts, width) that a classifier reads, or an encoder's, in the order of the encodings.

    They are what a head of one's own is fitted on, and what a monitor of drift compares.

    Raises:
        NoVectorsError: The graph is from an older export and has no vectors.
    """
    return _run_in_batches(lambda batch: runtime.run_with_vectors(batch)[1], encodings, pad_id)


def _run_in_batches(
    run: Callable[[Batch], NDArray[np.float32]], encodings: Sequence[Encoding], pad_id: int
) -> NDArray[np.float32]:
    """Return the rows of `run` in the order of the encodings, from batches of near lengths."""
    order = sorted(range(len(encodings)), key=lambda index: encodings[index].length)
    batches: list[NDArray[np.float32]] = []
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and encodings[order[end]].length * (end + 1 - start) <= BATCH_TOKENS:
            end += 1
        batches.append(run(collate([encodings[index] for index in order[start:end]], pad_id)))
        start = end
    rows = np.concatenate(batches)
    result = np.empty_like(rows)
    result[order] = rows
    return result


class TextEncoder:
    """Encoder of texts and dialogues to vectors."""

    def __init__(self, runtime: Runtime, tokenizer: Tokenizer) -> None:
        self._runtime, self._tokenizer = runtime, tokenizer

    def encode_dialogues(self, rows: Sequence[tuple[Turn, ...]]) -> NDArray[np.float32]:
        """Return the vector of each dialogue's newest turn in its context, (rows, width)."""
        encodings = [self._tokenizer.encode_dialogue(turns[-1].text, turns[:-1])[0] for turns in rows]
        return infer_all(self._runtime, encodings, self._tokenizer.pad_id)

    def encode_texts(self, rows: Sequence[str]) -> NDArray[np.float32]:
        """Return the vector of each text, (texts, width)."""
        return infer_all(self._runtime, [self._tokenizer.encode(text) for text in rows], self._tokenizer.pad_id)


def open_text_encoder(bundle: Bundle, device: Device = "cpu") -> TextEncoder:
    """Open the bundle's encoder on a device, with all cores of a CPU; raises as `open_runtime`."""
    return TextEncoder(open_runtime(bundle, 0, device), Tokenizer.from_bundle(bundle))
