"""The serving runtime on a GPU: a bundle's weights in 16 bits, in the operators that ONNX Runtime has fused for CUDA.

Its attention (cuDNN's) is compiled for each shape at its first run in a thread, 70 ms on an H200. So batches are padded
to few shapes, by rows as well as by length, and all run in one thread: whoever has run each once (a replica does before
it answers) never waits for a compiler. Needs the extra `gpu`, whose onnx package writes the graph; knows sessions,
nothing of texts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
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
"""What cards call that graph, which is no file of a bundle."""

ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
LENGTHS = (*range(16, 129, 16), *range(160, 257, 32), *range(320, 513, 64))
"""Of the shapes; what is longer or more than the last of them keeps its own."""

CAPTURED_TOKENS = 4_096
"""Of the shapes of up to so many tokens CUDA graphs are kept: starting their 350 kernels one by one takes longer than
running them (1.1 and 0.4 ms for one text on an H200). Larger ones gain nothing by it."""

INPUTS = ("ids", "mask", "types")


class CudaRuntime(OnnxRuntime):
    """Runs the graph of a bundle in fp16; raises ValueError as `rewritten`, RuntimeError as OnnxRuntime."""

    def __init__(self, graph: Path, threads: int = 1, device: Device = "cuda") -> None:
        captures = {"enable_cuda_graph": "1"} if device == "cuda" else {}
        super().__init__(to_fp16(graph), threads, device, **captures)
        self._device = device
        self._width = int(self._session.get_outputs()[0].shape[1])
        self._captured: dict[tuple[int, int], _CudaGraph] = {}
        # ONNX Runtime keeps what was compiled and captured for each thread that came.
        self._thread = ThreadPoolExecutor(1, "cuda")

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """A row for each text: logits (batch, labels), or vectors (batch, width)."""
        return self._thread.submit(self._run, batch).result()

    def _run(self, batch: Batch) -> NDArray[np.float32]:
        count = len(batch.ids)
        shape = padded_shape(*batch.ids.shape)
        feeds = pad_to_shape(batch, shape)
        if shape[0] * shape[1] > CAPTURED_TOKENS:
            rows: NDArray[np.float32] = self._session.run([self._output], feeds, _options(-1))[0]
            return rows[:count]
        if shape not in self._captured:
            self._captured[shape] = _CudaGraph.of(self._session, self._device, feeds, (self._output, self._width))
        return self._captured[shape].run(feeds)[:count]


@dataclass(frozen=True, slots=True)
class _CudaGraph:
    """A shape's inputs and rows at addresses of their own, as a CUDA graph needs them. On a CPU nothing is captured."""

    session: Any
    inputs: dict[str, Any]
    rows: Any
    binding: Any
    options: Any

    @classmethod
    def of(
        cls, session: Any, device: Device, feeds: dict[str, NDArray[np.int64]], output: tuple[str, int]
    ) -> _CudaGraph:
        def value(array: NDArray[Any]) -> Any:
            return onnxruntime.OrtValue.ortvalue_from_numpy(array.copy(), device, 0)

        rows, length = feeds["ids"].shape
        inputs, found = {name: value(feeds[name]) for name in INPUTS}, value(np.zeros((rows, output[1]), np.float32))
        binding = session.io_binding()
        for name, one in inputs.items():
            binding.bind_ortvalue_input(name, one)
        binding.bind_ortvalue_output(output[0], found)
        return cls(session, inputs, found, binding, _options(rows * (LENGTHS[-1] + 1) + length))

    def run(self, feeds: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        for name, value in self.inputs.items():
            value.update_inplace(feeds[name])
        self.session.run_with_iobinding(self.binding, self.options)
        return np.array(self.rows.numpy())


def to_fp16(graph: Path) -> bytes:
    """The CPU graph of a bundle as a GPU runs it; raises ValueError as `rewritten`."""
    return bytes(convert_graph(graph, "fp16").SerializeToString())


def batch_shapes(longest: int, tokens: int, items: int) -> Iterator[tuple[int, int]]:
    """What batches of up to so many padded tokens and items run in, the largest first; the longest text alone too."""
    found = {padded_shape(1, longest)}
    for length in range(1, longest + 1):
        found |= {padded_shape(rows, length) for rows in range(1, min(items, tokens // length) + 1)}
    return iter(sorted(found, key=lambda shape: -shape[0] * shape[1]))


def padded_shape(rows: int, length: int) -> tuple[int, int]:
    return round_up(ROWS, rows), round_up(LENGTHS, length)


def pad_to_shape(batch: Batch, shape: tuple[int, int]) -> dict[str, NDArray[np.int64]]:
    """With zeros; a row that stands for no text has one token, because attention over none is not a number."""
    found = {name: np.zeros(shape, np.int64) for name in INPUTS}
    rows, length = batch.ids.shape
    for name, values in zip(INPUTS, (batch.ids, batch.mask, batch.token_types), strict=True):
        found[name][:rows, :length] = values
    found["mask"][rows:, 0] = 1
    return found


def round_up(steps: tuple[int, ...], number: int) -> int:
    return steps[bisect_left(steps, number)] if number <= steps[-1] else number


def _options(graph: int) -> Any:
    """`graph` numbers the CUDA graph that is captured at its first run and replayed then; -1: none."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options
