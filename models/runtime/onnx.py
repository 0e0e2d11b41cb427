"""The serving runtime: an exported graph in ONNX Runtime, on CPU or CUDA.

Knows graphs and sessions, nothing of texts. Needs no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models.runtime.protocol import Device
from models.text.encoding import Batch

PROVIDERS: dict[Device, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    # Memory grows by what a batch asks for, not to the next power of two: replicas may share a GPU.
    "cuda": ("CUDAExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"}),
}

MISSING = "this onnxruntime cannot run on {device}; cuda needs a GPU, its driver and pip install 'heed[gpu]'"


def check_device(device: Device) -> None:
    """Raises RuntimeError when this onnxruntime was not made for it; whether it is there, only a session tells."""
    if PROVIDERS[device][0] not in onnxruntime.get_available_providers():
        raise RuntimeError(MISSING.format(device=device))


def open_session(
    model: Path | bytes, folder: Path | None = None, threads: int = 1, device: Device = "cpu", **more: str
) -> Any:
    """A graph loaded for a device, from its file or from bytes, whose other data lie in `folder`.

    `more` are options of the device's provider. Raises RuntimeError when the device is not to be had.
    """
    provider, provider_options = PROVIDERS[device]
    check_device(device)
    if device == "cuda":
        onnxruntime.preload_dlls()  # CUDA and cuDNN as Python packages, which no linker finds by itself
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # The arena never gives memory back, and every new shape would make it grow.
    options.enable_cpu_mem_arena = False
    # A plan of the memory is kept for each shape that was seen, and on a GPU rows differ from batch to batch.
    options.enable_mem_pattern = device == "cpu"
    if folder is not None:
        # The word embeddings are in a file of their own, which a graph from memory would look for in vain.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=[(provider, provider_options | more)]
    )
    if provider not in session.get_providers():  # it falls back to the CPU and only logs it
        raise RuntimeError(MISSING.format(device=device))
    return session


class OnnxRuntime:
    """Runs a graph with inputs `ids`, `mask`, `types` (batch, length) and one output, `logits` or `vectors`.

    A graph that is given as bytes, and not as its file, holds all its data itself; `more` are options of the device's
    provider. Raises RuntimeError when the device is not to be had.
    """

    def __init__(self, graph: Path | bytes, threads: int = 1, device: Device = "cpu", **more: str) -> None:
        self._session: Any = open_session(graph, None, threads, device, **more)
        self._output = str(self._session.get_outputs()[0].name)

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """A row for each text: logits (batch, labels), or vectors (batch, width)."""
        feeds = {"ids": batch.ids, "mask": batch.mask, "types": batch.token_types}
        rows: NDArray[np.float32] = self._session.run([self._output], feeds)[0]
        return rows.astype(np.float32, copy=False)
