"""The runtime for GPUs: a bundle's weights in 16 bits, in the operators that ONNX Runtime fuses for CUDA.

cuDNN compiles attention for each shape when it first runs in a thread, 70 ms on an H200. So batches are padded to few
shapes, in rows and in length, and all run in the same thread. A replica runs each shape before it serves, so no request
waits for the compiler. Needs the extra `gpu`, whose onnx package builds the graph. Knows sessions, nothing of texts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models.graph.convert import convert_graph
from models.runtime.onnx import OnnxRuntime
from models.runtime.protocol import Device
from models.text.encoding import Batch

GPU_GRAPH_LABEL = "in 16 bits, for GPUs"
"""The name in model cards of the fp16 graph, which is no file of a bundle."""

ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
LENGTHS = (*range(16, 129, 16), *range(160, 257, 32), *range(320, 513, 64))
"""The rows and lengths of padded shapes. A batch beyond the last value is not padded."""

MAX_CAPTURED_TOKENS = 4_096
"""The limit of padded tokens up to which a shape is captured as a CUDA graph.

For small shapes, launching 350 kernels takes longer than running them: 1.1 and 0.4 ms for a text on an H200. Larger
shapes gain nothing.
"""

INPUTS = ("ids", "mask", "types")


class CudaRuntime(OnnxRuntime):
    """The runtime of a bundle's graph in fp16; raises ValueError as `to_fp16`, RuntimeError as OnnxRuntime."""

    def __init__(self, graph: Path, threads: int = 1, device: Device = "cuda") -> None:
        settings = {"enable_cuda_graph": "1"} if device == "cuda" else {}
        super().__init__(to_fp16(graph), threads, device, **settings)
        self._device = device
        self._widths = {str(output.name): int(output.shape[1]) for output in self._session.get_outputs()}
        self._captured: dict[tuple[int, int], _CudaGraph] = {}
        # ONNX Runtime stores compiled kernels and captured graphs for each thread.
        self._thread = ThreadPoolExecutor(1, "cuda")

    def _fetch(self, batch: Batch, names: Sequence[str]) -> list[NDArray[np.float32]]:
        return self._thread.submit(self._fetch_in_thread, batch, names).result()

    def _fetch_in_thread(self, batch: Batch, names: Sequence[str]) -> list[NDArray[np.float32]]:
        count = len(batch.ids)
        shape = padded_shape(*batch.ids.shape)
        feeds = pad_to_shape(batch, shape)
        if shape[0] * shape[1] > MAX_CAPTURED_TOKENS:
            return [rows[:count] for rows in self._session.run(names, feeds, _options(-1))]
        if shape not in self._captured:
            self._captured[shape] = _CudaGraph.capture(self._session, self._device, feeds, self._widths)
        return [rows[:count] for rows in self._captured[shape].run(feeds, names)]


@dataclass(frozen=True, slots=True)
class _CudaGraph:
    """Inputs and outputs of a shape at fixed addresses, as a CUDA graph needs them. On a CPU nothing is captured.

    All outputs are bound, and only those asked for are copied from the device.
    """

    session: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    binding: Any
    options: Any

    @classmethod
    def capture(
        cls, session: Any, device: Device, feeds: dict[str, NDArray[np.int64]], widths: Mapping[str, int]
    ) -> _CudaGraph:
        """Bind the arrays of a shape, whose CUDA graph is captured by the first run. `widths` are those of outputs."""

        def to_device(array: NDArray[Any]) -> Any:
            return onnxruntime.OrtValue.ortvalue_from_numpy(array.copy(), device, 0)

        count, length = feeds["ids"].shape
        inputs = {name: to_device(feeds[name]) for name in INPUTS}
        outputs = {name: to_device(np.zeros((count, width), np.float32)) for name, width in widths.items()}
        binding = session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        return cls(session, inputs, outputs, binding, _options(count * (LENGTHS[-1] + 1) + length))

    def run(self, feeds: dict[str, NDArray[np.int64]], names: Sequence[str]) -> list[NDArray[np.float32]]:
        for name, value in self.inputs.items():
            value.update_inplace(feeds[name])
        self.session.run_with_iobinding(self.binding, self.options)
        return [np.array(self.outputs[name].numpy()) for name in names]


def to_fp16(graph: Path) -> bytes:
    """Return a bundle's CPU graph converted to fp16 for a GPU; raises ValueError as `convert_graph`."""
    return bytes(convert_graph(graph, "fp16").SerializeToString())


def batch_shapes(max_length: int, max_tokens: int, max_items: int) -> Iterator[tuple[int, int]]:
    """Return the padded shapes of all batches within the limits, largest first.

    They include the longest text alone, which may exceed `max_tokens`.
    """
    shapes = {padded_shape(1, max_length)}
    for length in range(1, max_length + 1):
        shapes |= {padded_shape(rows, length) for rows in range(1, min(max_items, max_tokens // length) + 1)}
    return iter(sorted(shapes, key=lambda shape: -shape[0] * shape[1]))


def padded_shape(rows: int, length: int) -> tuple[int, int]:
    return round_up(ROWS, rows), round_up(LENGTHS, length)


def pad_to_shape(batch: Batch, shape: tuple[int, int]) -> dict[str, NDArray[np.int64]]:
    """Return the inputs padded with zeros. Empty rows get a token, because attention over no token is NaN."""
    feeds = {name: np.zeros(shape, np.int64) for name in INPUTS}
    rows, length = batch.ids.shape
    for name, values in zip(INPUTS, (batch.ids, batch.mask, batch.token_types), strict=True):
        feeds[name][:rows, :length] = values
    feeds["mask"][rows:, 0] = 1
    return feeds


def round_up(steps: tuple[int, ...], count: int) -> int:
    """Return the first step that is at least `count`, or `count` beyond the last."""
    return steps[bisect_left(steps, count)] if count <= steps[-1] else count


def _options(graph_id: int) -> Any:
    """Return options for the CUDA graph `graph_id`, captured by its first run and then replayed; -1 is none."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options
