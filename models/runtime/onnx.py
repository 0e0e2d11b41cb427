"""The ONNX runtime: an exported graph in an ONNX Runtime session, on CPU or CUDA.

Knows graphs and sessions, nothing of texts. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models.graph.names import VECTORS
from models.installation import install_command, requirements_of
from models.runtime.protocol import Device, NoVectorsError
from models.text.encoding import Batch

PROVIDERS: dict[Device, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    # Memory grows by the request, not to the next power of two, because replicas may share a GPU.
    "cuda": ("CUDAExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"}),
}


def _unavailable(device: Device) -> str:
    """Return why a device cannot be used. Both builds of ONNX Runtime are one module, so the other one has to go."""
    command = install_command(list(requirements_of("gpu").values()))
    return f"this onnxruntime cannot run on {device}; cuda needs a GPU, its driver and, without onnxruntime, {command}"


def check_device(device: Device) -> None:
    """Raise RuntimeError if this build of onnxruntime does not support the device.

    Only a session shows whether the device is present.
    """
    if PROVIDERS[device][0] not in onnxruntime.get_available_providers():
        raise RuntimeError(_unavailable(device))


def open_session(
    model: Path | bytes, folder: Path | None = None, threads: int = 1, device: Device = "cpu", **provider_settings: str
) -> Any:
    """Open a session for a graph, from its file or from bytes with external data in `folder`.

    `provider_settings` are options of the device's provider.

    Raises:
        RuntimeError: The device is not available.
    """
    provider, provider_options = PROVIDERS[device]
    check_device(device)
    if device == "cuda":
        onnxruntime.preload_dlls()  # CUDA and cuDNN are Python packages, where no linker looks
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # The arena never releases memory, and every new shape would make it grow.
    options.enable_cpu_mem_arena = False
    # ONNX Runtime stores a memory plan for each shape that it sees. On a GPU the number of rows varies.
    options.enable_mem_pattern = device == "cpu"
    if folder is not None:
        # A graph loaded from bytes has no path from which to find the file of the word embeddings.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model),
        options,
        providers=[(provider, provider_options | provider_settings)],
    )
    if provider not in session.get_providers():  # it falls back to the CPU and only logs that
        raise RuntimeError(_unavailable(device))
    return session


class OnnxRuntime:
    """The runtime of a graph with inputs `ids`, `mask`, `types` (batch, length) and outputs `logits` and `vectors`.

    An encoder's graph has no `logits`, and a classifier's from an older export has no `vectors`. A graph passed as
    bytes must have no external data. `provider_settings` are options of the device's provider.

    Raises:
        RuntimeError: The device is not available.
    """

    def __init__(self, graph: Path | bytes, threads: int = 1, device: Device = "cpu", **provider_settings: str) -> None:
        self._session: Any = open_session(graph, None, threads, device, **provider_settings)
        self._outputs = [str(output.name) for output in self._session.get_outputs()]

    @property
    def has_vectors(self) -> bool:
        """Say whether `run_with_vectors` has vectors to return."""
        return VECTORS in self._outputs

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Return a row for each text: logits (batch, labels) or vectors (batch, width)."""
        return self._fetch(batch, self._outputs[:1])[0]

    def run_with_vectors(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the rows of `run` and the vectors (batch, width) of the same run; raises NoVectorsError."""
        if not self.has_vectors:
            raise NoVectorsError(f"the graph has no output {VECTORS}: it is from an older export; export it again")
        outputs = self._fetch(batch, self._outputs)
        return outputs[0], outputs[self._outputs.index(VECTORS)]

    def _fetch(self, batch: Batch, names: Sequence[str]) -> list[NDArray[np.float32]]:
        """Return the outputs of these names."""
        feeds = {"ids": batch.ids, "mask": batch.mask, "types": batch.token_types}
        return [rows.astype(np.float32, copy=False) for rows in self._session.run(names, feeds)]
