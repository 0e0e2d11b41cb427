"""The serving runtime: an exported graph in ONNX Runtime, on CPU or CUDA.

Knows graphs and sessions, nothing of texts. Needs no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models.bundle import Bundle, Device
from models.tokens import Batch

LENGTH_STEP = 16
"""Lengths on CUDA are multiples of it: as many as the tiles of its matrix units, and so few that all can be warmed."""

PROVIDERS: dict[Device, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    # Memory grows by what a batch asks for, not to the next power of two: replicas may share a GPU. Which attention
    # kernel runs is left to ONNX Runtime, and there is no convolution for cuDNN to search an algorithm for.
    "cuda": ("CUDAExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"}),
}


def session_options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # The arena never gives memory back, and every new shape would make it grow.
    options.enable_cpu_mem_arena = False
    return options


class OnnxRuntime:
    """Runs a graph with inputs `ids`, `mask`, `types` (batch, length) and one output, `logits` or `vectors`.

    Raises RuntimeError when the device is not to be had.
    """

    def __init__(self, path: Path, threads: int = 1, device: Device = "cpu") -> None:
        provider, provider_options = PROVIDERS[device]
        missing = f"this onnxruntime cannot run on {device}; cuda needs the extra `gpu`, a GPU and its driver"
        if provider not in onnxruntime.get_available_providers():
            raise RuntimeError(missing)
        if device == "cuda":
            onnxruntime.preload_dlls()  # CUDA and cuDNN as Python packages, which no linker finds by itself
        options = session_options(threads)
        # A plan of the memory is kept for each shape that was seen, and on a GPU rows differ from batch to batch.
        options.enable_mem_pattern = device == "cpu"
        self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=[(provider, provider_options)])
        if provider not in self._session.get_providers():  # it falls back to the CPU and only logs it
            raise RuntimeError(missing)
        self._output = str(self._session.get_outputs()[0].name)

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """A row for each text: logits (batch, labels), or vectors (batch, width)."""
        feeds = {"ids": batch.ids, "mask": batch.mask, "types": batch.types}
        rows: NDArray[np.float32] = self._session.run([self._output], feeds)[0]
        return rows.astype(np.float32, copy=False)


class BoundRuntime(OnnxRuntime):
    """The same, for a device with memory of its own: inputs are bound from the host and logits to it.

    Lengths are padded to multiples of LENGTH_STEP. Kernels come compiled, so a runtime that has seen each length once,
    and its largest batch, has loaded and allocated all it needs. CUDA graphs would save the launches of small batches,
    at one capture and one set of fixed buffers for each pair of rows and length.
    """

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """A row for each text: logits (batch, labels), or vectors (batch, width)."""
        binding = self._session.io_binding()
        for name, array in (("ids", batch.ids), ("mask", batch.mask), ("types", batch.types)):
            binding.bind_cpu_input(name, padded(array))
        binding.bind_output(self._output, "cpu")
        self._session.run_with_iobinding(binding)
        rows: NDArray[np.float32] = binding.copy_outputs_to_cpu()[0]
        return rows


def padded(array: NDArray[np.int64]) -> NDArray[np.int64]:
    """(batch, length) with zeros up to the next multiple of LENGTH_STEP."""
    return np.pad(array, ((0, 0), (0, -array.shape[1] % LENGTH_STEP)))


def open_runtime(bundle: Bundle, threads: int = 1, device: Device = "cpu") -> OnnxRuntime:
    """The bundle's graph for the device, loaded; raises BundleError when it has none, RuntimeError as OnnxRuntime."""
    kind = BoundRuntime if device == "cuda" else OnnxRuntime
    return kind(bundle.graph_for(device), threads, device)
