"""What a GPU gives: sequences a second of the engine, as a share of the device's bf16 matrix rate and beside others.

The engine is the batcher that serves, on the bundle's weights in fp16 in ONNX Runtime and on the same network in torch
(fused attention), each with the batches measured for it. Beside it, on texts of mixed lengths: plain transformers in
fp16 and ONNX Runtime without binding, both in padded batches as the texts come. A sequence of L tokens costs
layers * (8 L d^2 + 4 L d f + 4 L^2 d) operations, of width d and inner width f: four projections, the feed-forward
network, scores and their sums; a multiplication and an addition are two. Run with `make bench-gpu`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import tokenizers
import torch
from numpy.typing import NDArray

from models.bundle import SHIPPED, Bundle, BundleError, load_bundle
from models.export.torch_runtime import TorchRuntime
from models.networks.graph_network import Shape, load_graph_classifier
from models.runtime.cuda import CudaRuntime, pad_to_shape, padded_shape, to_fp16
from models.runtime.offline import infer_all
from models.runtime.onnx import PROVIDERS, OnnxRuntime
from models.runtime.protocol import Device, Runtime
from models.text.encoding import Batch, Encoding, collate
from models.text.tokenizer import Tokenizer
from service.inference.batch_policy import BatchLimits
from service.telemetry import logs
from service.tuning import gpu_batches as budget
from service.tuning import throughput
from tests.bench.serving import texts

PLAIN_BATCH = 32
TOGETHER = 32
"""Texts that a caller of the engine brings, as a gateway does that gathered them."""

LEAST_SPEEDUP, LEAST_AGREEMENT = 3.0, 0.995
ABSENT = "no GPU that both torch and onnxruntime-gpu can use; --device cpu runs the code at tiny sizes"
TINY = "On the CPU, at tiny sizes: shows that this benchmark runs, and no figure of a GPU."


@dataclass(frozen=True, slots=True)
class Size:
    lengths: tuple[int, ...]
    seconds: float  # of each measurement
    texts: int
    matrix: int  # rows and columns of the square matrices that are multiplied
    limits: BatchLimits | None  # of a batch; None: measured


SIZES: dict[Device, Size] = {
    "cpu": Size((16, 64), 0.05, 40, 64, BatchLimits(512, 8, 1 << 40)),
    "cuda": Size((16, 64, 128, 384), 2.0, 1_024, 8_192, None),
}


@dataclass(frozen=True, slots=True)
class Bench:
    """One device, one bundle; every rate is in sequences per second."""

    device: Device
    size: Size
    bundle: Bundle
    pad: int

    def engine(self, runtime: Runtime, texts: Sequence[Encoding], limits: BatchLimits) -> float:
        """With the batcher that serves, and enough callers, of many texts as gateways are, that two batches wait."""
        callers = max(2, 2 * limits.batch_items // TOGETHER)
        measured = throughput.measure_throughput(runtime, self.pad, texts, callers, limits, self.size.seconds, TOGETHER)
        return asyncio.run(measured) * len(texts) / sum(text.length for text in texts)

    def limits(self, runtime: Runtime) -> BatchLimits:
        if self.size.limits:
            return self.size.limits
        unset, given = {"batch_tokens", "batch_items"}, BatchLimits(budget.MIN_TOKENS, 1, 1 << 40)
        return budget.measure_batch_limits(runtime, given, unset, self.bundle.max_tokens)

    def as_they_come(self, runtime: Runtime, texts: Sequence[Encoding]) -> float:
        batches = [collate(texts[start : start + PLAIN_BATCH], self.pad) for start in range(0, len(texts), PLAIN_BATCH)]
        for batch in batches:
            runtime.run(batch)
        started_s, done = time.perf_counter(), 0
        for batch in cycle(batches):
            runtime.run(batch)
            done += len(batch.ids)
            elapsed_s = time.perf_counter() - started_s
            if elapsed_s >= self.size.seconds and done >= len(texts):
                return done / elapsed_s
        raise AssertionError("a cycle does not end")


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 when the bundle or the data cannot be used; 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="bench-gpu", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--device", choices=list(SIZES), default="cuda")
    parser.add_argument("--bundle", type=Path, default=SHIPPED, help="folder of the bundle (the shipped one)")
    parser.add_argument("--data", type=Path, help="folder of data sets; without it texts are made up")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not available():
        print(f"bench-gpu: {ABSENT}", file=sys.stderr)
        return 2
    try:
        bundle = load_bundle(given.bundle)
        tokenizer = Tokenizer(bundle.tokenizer, bundle.max_tokens)
        bench = Bench(given.device, SIZES[given.device], bundle, tokenizer.pad_id)
        chosen = mixed(bench) if given.data is None else from_data(given.data, tokenizer, bench.size.texts)
    except (BundleError, OSError, ValueError) as error:
        print(f"bench-gpu: {error}", file=sys.stderr)
        return 1
    for line in report(bench, chosen):
        print(line, flush=True)
    return 0


@dataclass(frozen=True, slots=True)
class Shaped:
    """Padded to the engine's shapes: torch, too, takes cuDNN's attention, which is compiled for each."""

    runtime: Runtime

    def run(self, batch: Batch) -> NDArray[np.float32]:
        feeds = pad_to_shape(batch, padded_shape(*batch.ids.shape))
        return self.runtime.run(Batch(feeds["ids"], feeds["mask"], feeds["types"]))[: len(batch.ids)]


def available() -> bool:
    return torch.cuda.is_available() and PROVIDERS["cuda"][0] in onnxruntime.get_available_providers()


def report(bench: Bench, chosen: Sequence[Encoding]) -> Iterator[str]:
    """Lines of Markdown; `chosen` are the texts of mixed lengths."""
    network, shape = load_graph_classifier(bench.bundle.graph)
    runtimes: dict[str, Runtime] = {
        "engine, fp16 graph": CudaRuntime(bench.bundle.graph, device=bench.device),
        "engine, torch fp16": Shaped(TorchRuntime(deepcopy(network), bench.device, torch.float16)),
        "engine, torch bf16": Shaped(TorchRuntime(deepcopy(network), bench.device, torch.bfloat16)),
    }
    limits = bench.limits(runtimes["engine, fp16 graph"])
    matrix = matrix_rate(bench.device, bench.size.matrix)

    if bench.device == "cpu":
        yield TINY
    yield f"{device_name(bench.device)}, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}"
    yield f"{bench.bundle.name} {bench.bundle.version}: {shape}"
    yield f"bf16 matrices of {bench.size.matrix}: {matrix / 1e12:.4g} Tflop/s"
    yield f"engine: batches of {limits.batch_tokens} tokens, {limits.batch_items} texts"
    yield ""
    yield f"| tokens | {' | '.join(f'{name}, sequences/s | of the matrix rate' for name in runtimes)} |"
    yield "|--:|" + "--:|" * (2 * len(runtimes))
    for length in bench.size.lengths:
        same = made_up(bench, [length] * bench.size.texts)
        cells = []
        for runtime in runtimes.values():
            rate = bench.engine(runtime, same, limits)
            cells.append(f"{rate:,.0f} | {rate * operations(shape, length) / matrix:.1%}")
        yield f"| {length} | {' | '.join(cells)} |"

    plain: dict[str, Runtime] = {
        "plain transformers fp16, padded": TorchRuntime(network, bench.device, torch.float16),
        "ONNX Runtime fp16, no binding, padded": OnnxRuntime(to_fp16(bench.bundle.graph), device=bench.device),
    }
    for runtime in runtimes.values():
        if bench.size.limits is None:
            budget.warm_up(runtime, limits, bench.bundle.max_tokens)
    rates = {name: bench.engine(runtime, chosen, limits) for name, runtime in runtimes.items()}
    rates |= {name: bench.as_they_come(runtime, chosen) for name, runtime in plain.items()}
    served = rates["engine, fp16 graph"]
    yield ""
    mean = np.mean([text.length for text in chosen])
    yield f"| mixed lengths, mean {mean:.0f} tokens | sequences/s | engine ÷ this |"
    yield "|---|--:|--:|"
    yield from (f"| {name} | {rate:,.0f} | {served / rate:.2f} |" for name, rate in rates.items())

    truth = TorchRuntime(load_graph_classifier(bench.bundle.graph)[0], bench.device)
    agreement = same_labels(truth, runtimes["engine, fp16 graph"], chosen, bench.pad)
    speedup = served / rates["plain transformers fp16, padded"]
    yield ""
    yield f"engine ÷ plain transformers: {speedup:.2f} (must: {LEAST_SPEEDUP})"
    yield f"fp16 and fp32 choose the same label: {agreement:.2%} of {len(chosen)} texts (must: {LEAST_AGREEMENT:.1%})"


def operations(shape: Shape, length: int) -> float:
    """Of the encoder on one sequence; the formula is above."""
    layer = 8 * length * shape.width**2 + 4 * length * shape.width * shape.inner + 4 * length**2 * shape.width
    return float(shape.layers * layer)


def matrix_rate(device: Device, size: int) -> float:
    """Operations per second of torch on two square bf16 matrices: the median of ten products after three."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    taken = []
    for _ in range(13):
        started_s = time.perf_counter()
        torch.matmul(left, right)
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started_s)
    return 2 * size**3 / median(taken[3:])


def same_labels(truth: Runtime, other: Runtime, chosen: Sequence[Encoding], pad: int) -> float:
    """Share of the texts for which both find the same label the likeliest."""
    labels = [infer_all(runtime, chosen, pad).argmax(axis=1) for runtime in (truth, other)]
    return float((labels[0] == labels[1]).mean())


def made_up(bench: Bench, lengths: Sequence[int]) -> list[Encoding]:
    """Texts of these lengths, their ids drawn from the vocabulary."""
    vocabulary = tokenizers.Tokenizer.from_file(str(bench.bundle.tokenizer)).get_vocab_size()
    rng = np.random.default_rng(3)
    return [
        Encoding(rng.integers(vocabulary, size=length), np.zeros(length, np.int64), False, "en") for length in lengths
    ]


def mixed(bench: Bench) -> list[Encoding]:
    lengths = cycle(throughput.sample_lengths(bench.bundle.max_tokens))
    return made_up(bench, [next(lengths) for _ in range(bench.size.texts)])


def from_data(data: Path, tokenizer: Tokenizer, count: int) -> list[Encoding]:
    return [tokenizer.encode(text) for text in texts.read(data, tokenizer, count)["mixed"].texts]


def device_name(device: Device) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


if __name__ == "__main__":
    logs.configure("error")  # away from the standard output, which is for the table
    sys.exit(main())
