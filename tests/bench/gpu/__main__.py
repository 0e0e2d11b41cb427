"""The throughput of the engine on a GPU, as a share of the device's bf16 matrix rate and beside plain runtimes.

The engine is the batcher of the service with measured batch limits. It runs the bundle's weights in fp16 in ONNX
Runtime, and the same network in torch with fused attention. The baselines run texts of mixed lengths in padded batches:
plain transformers in fp16, and ONNX Runtime without binding.

A sequence of L tokens costs layers * (8 L d^2 + 4 L d f + 4 L^2 d) operations, with width d and inner width f. The
terms are the projections, the feed-forward network and attention. Additions count separately from multiplications.
Run with `make bench-gpu`.
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
from models.networks.graph_network import NetworkShape, load_graph_classifier
from models.networks.torch_runtime import TorchRuntime
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
TEXTS_PER_CALL = 32
"""Texts in a call to the engine. A gateway gathers about as many."""

MIN_SPEEDUP, MIN_AGREEMENT = 3.0, 0.995
NO_GPU = "no GPU that both torch and onnxruntime-gpu can use; --device cpu runs the code at tiny sizes"
CPU_NOTE = "On the CPU, at tiny sizes: a check that this benchmark runs, with no figures of a GPU."


@dataclass(frozen=True, slots=True)
class Size:
    lengths: tuple[int, ...]
    seconds: float  # per measurement
    texts: int
    matrix: int  # rows and columns of the multiplied matrices
    limits: BatchLimits | None  # None: measured


SIZES: dict[Device, Size] = {
    "cpu": Size((16, 64), 0.05, 40, 64, BatchLimits(512, 8, 1 << 40)),
    "cuda": Size((16, 64, 128, 384), 2.0, 1_024, 8_192, None),
}


@dataclass(frozen=True, slots=True)
class Bench:
    """A device and a bundle. Every rate is in sequences per second."""

    device: Device
    size: Size
    bundle: Bundle
    pad: int

    def engine_rate(self, runtime: Runtime, texts: Sequence[Encoding], limits: BatchLimits) -> float:
        """Return the rate of the service's batcher, with enough callers for two waiting batches."""
        callers = max(2, 2 * limits.batch_items // TEXTS_PER_CALL)
        measured = throughput.measure_throughput(
            runtime, self.pad, texts, callers, limits, self.size.seconds, TEXTS_PER_CALL
        )
        return asyncio.run(measured) * len(texts) / sum(text.length for text in texts)

    def batch_limits(self, runtime: Runtime) -> BatchLimits:
        if self.size.limits:
            return self.size.limits
        unset, start = {"batch_tokens", "batch_items"}, BatchLimits(budget.MIN_TOKENS, 1, 1 << 40)
        return budget.measure_batch_limits(runtime, start, unset, self.bundle.max_tokens)

    def plain_rate(self, runtime: Runtime, texts: Sequence[Encoding]) -> float:
        """Return the rate of padded batches in the order of the texts."""
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
    """Run the benchmark. Return 0, or 1 if the bundle or the data is unusable, or 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="bench-gpu", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--device", choices=list(SIZES), default="cuda")
    parser.add_argument("--bundle", type=Path, default=SHIPPED, help="folder of the bundle (the shipped one)")
    parser.add_argument("--data", type=Path, help="folder of data sets; without it, texts are random")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not gpu_available():
        print(f"bench-gpu: {NO_GPU}", file=sys.stderr)
        return 2
    try:
        bundle = load_bundle(options.bundle)
        tokenizer = Tokenizer.from_bundle(bundle)
        bench = Bench(options.device, SIZES[options.device], bundle, tokenizer.pad_id)
        sample = (
            mixed_random_texts(bench) if options.data is None else read_texts(options.data, tokenizer, bench.size.texts)
        )
    except (BundleError, OSError, ValueError) as error:
        print(f"bench-gpu: {error}", file=sys.stderr)
        return 1
    for line in report(bench, sample):
        print(line, flush=True)
    return 0


@dataclass(frozen=True, slots=True)
class PaddedRuntime:
    """A runtime whose batches are padded to the engine's shapes. Torch's cuDNN attention is compiled per shape, too."""

    runtime: Runtime

    def run(self, batch: Batch) -> NDArray[np.float32]:
        feeds = pad_to_shape(batch, padded_shape(*batch.ids.shape))
        return self.runtime.run(Batch(feeds["ids"], feeds["mask"], feeds["types"]))[: len(batch.ids)]


def gpu_available() -> bool:
    return torch.cuda.is_available() and PROVIDERS["cuda"][0] in onnxruntime.get_available_providers()


def report(bench: Bench, texts: Sequence[Encoding]) -> Iterator[str]:
    """Yield lines of Markdown. `texts` have mixed lengths."""
    network, shape = load_graph_classifier(bench.bundle.graph)
    runtimes: dict[str, Runtime] = {
        "engine, fp16 graph": CudaRuntime(bench.bundle.graph, device=bench.device),
        "engine, torch fp16": PaddedRuntime(TorchRuntime(deepcopy(network), bench.device, torch.float16)),
        "engine, torch bf16": PaddedRuntime(TorchRuntime(deepcopy(network), bench.device, torch.bfloat16)),
    }
    limits = bench.batch_limits(runtimes["engine, fp16 graph"])
    matrix = matrix_rate(bench.device, bench.size.matrix)

    if bench.device == "cpu":
        yield CPU_NOTE
    yield f"{device_name(bench.device)}, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}"
    yield f"{bench.bundle.name} {bench.bundle.version}: {shape}"
    yield f"bf16 matrices of {bench.size.matrix}: {matrix / 1e12:.4g} Tflop/s"
    yield f"engine: batches of {limits.batch_tokens} tokens, {limits.batch_items} texts"
    yield ""
    yield f"| tokens | {' | '.join(f'{name}, sequences/s | of the matrix rate' for name in runtimes)} |"
    yield "|--:|" + "--:|" * (2 * len(runtimes))
    for length in bench.size.lengths:
        uniform = random_texts(bench, [length] * bench.size.texts)
        cells = []
        for runtime in runtimes.values():
            rate = bench.engine_rate(runtime, uniform, limits)
            cells.append(f"{rate:,.0f} | {rate * count_operations(shape, length) / matrix:.1%}")
        yield f"| {length} | {' | '.join(cells)} |"

    plain_runtimes: dict[str, Runtime] = {
        "plain transformers fp16, padded": TorchRuntime(network, bench.device, torch.float16),
        "ONNX Runtime fp16, no binding, padded": OnnxRuntime(to_fp16(bench.bundle.graph), device=bench.device),
    }
    for runtime in runtimes.values():
        if bench.size.limits is None:
            budget.warm_up(runtime, limits, bench.bundle.max_tokens)
    rates = {name: bench.engine_rate(runtime, texts, limits) for name, runtime in runtimes.items()}
    rates |= {name: bench.plain_rate(runtime, texts) for name, runtime in plain_runtimes.items()}
    engine_rate = rates["engine, fp16 graph"]
    yield ""
    mean = np.mean([text.length for text in texts])
    yield f"| mixed lengths, mean {mean:.0f} tokens | sequences/s | engine ÷ this |"
    yield "|---|--:|--:|"
    yield from (f"| {name} | {rate:,.0f} | {engine_rate / rate:.2f} |" for name, rate in rates.items())

    reference = TorchRuntime(load_graph_classifier(bench.bundle.graph)[0], bench.device)
    agreement = label_agreement(reference, runtimes["engine, fp16 graph"], texts, bench.pad)
    speedup = engine_rate / rates["plain transformers fp16, padded"]
    yield ""
    yield f"engine ÷ plain transformers: {speedup:.2f} (must: {MIN_SPEEDUP})"
    yield f"fp16 and fp32 predict the same label: {agreement:.2%} of {len(texts)} texts (must: {MIN_AGREEMENT:.1%})"


def count_operations(shape: NetworkShape, length: int) -> float:
    """Return the operations of the encoder on a sequence, by the formula of the module."""
    layer = 8 * length * shape.width**2 + 4 * length * shape.width * shape.inner + 4 * length**2 * shape.width
    return float(shape.layers * layer)


def matrix_rate(device: Device, size: int) -> float:
    """Return torch's operations per second on square bf16 matrices: the median of ten products after three warm-ups."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times_s = []
    for _ in range(13):
        started_s = time.perf_counter()
        torch.matmul(left, right)
        if device == "cuda":
            torch.cuda.synchronize()
        times_s.append(time.perf_counter() - started_s)
    return 2 * size**3 / median(times_s[3:])


def label_agreement(reference: Runtime, other: Runtime, texts: Sequence[Encoding], pad: int) -> float:
    """Return the share of the texts for which both runtimes predict the same label."""
    labels = [infer_all(runtime, texts, pad).argmax(axis=1) for runtime in (reference, other)]
    return float((labels[0] == labels[1]).mean())


def random_texts(bench: Bench, lengths: Sequence[int]) -> list[Encoding]:
    """Return texts of these lengths with random ids."""
    vocabulary = tokenizers.Tokenizer.from_file(str(bench.bundle.tokenizer)).get_vocab_size()
    rng = np.random.default_rng(3)
    return [
        Encoding(rng.integers(vocabulary, size=length), np.zeros(length, np.int64), False, "en") for length in lengths
    ]


def mixed_random_texts(bench: Bench) -> list[Encoding]:
    lengths = cycle(throughput.sample_lengths(bench.bundle.max_tokens))
    return random_texts(bench, [next(lengths) for _ in range(bench.size.texts)])


def read_texts(data: Path, tokenizer: Tokenizer, count: int) -> list[Encoding]:
    return [tokenizer.encode(text) for text in texts.read(data, tokenizer, count)["mixed"].texts]


def device_name(device: Device) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


if __name__ == "__main__":
    logs.configure("bench", "error")  # keeps the standard output for the table
    sys.exit(main())
