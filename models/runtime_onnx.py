"""The serving runtime: an exported graph in ONNX Runtime, on CPU or CUDA.

Knows graphs and sessions, nothing of texts. Needs no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models.tokens import Batch

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntime:
    """Runs a graph with inputs `ids`, `mask`, `types` (batch, length) and output `logits` (batch, labels)."""

    def __init__(self, path: Path, threads: int = 1, device: Literal["cpu", "cuda"] = "cpu") -> None:
        if PROVIDERS[device] not in onnxruntime.get_available_providers():
            raise RuntimeError(f"this onnxruntime cannot run on {device}; install the extra `gpu` for cuda")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # The arena never gives memory back, and every new shape would make it grow.
        options.enable_cpu_mem_arena = False
        self._session = onnxruntime.InferenceSession(str(path), options, providers=[PROVIDERS[device]])

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Logits of shape (batch, labels)."""
        feeds = {"ids": batch.ids, "mask": batch.mask, "types": batch.types}
        logits: NDArray[np.float32] = self._session.run(["logits"], feeds)[0]
        return logits.astype(np.float32, copy=False)
