"""The price of a graph's output `vectors`, when nobody asks for it and when somebody does.

Builds a bundle's graph with that output and without it, and runs both on one thread on the same random batches, one
after the other in changing order. Times are CPU times of that thread, because other work on the machine disturbs them
least. Prints each way's median time, and the median and the middle half of its ratios to the graph without the output.
A second session without the output shows what the comparison can tell.
Run with `make bench-vectors`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from models.bundle import SHIPPED, load_bundle
from models.graph.convert import convert_graph
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import Batch, Encoding, collate
from tests.support.older_graph import older_graph

TOKENS = (16, 24)
IDS = (10, 1000)
ROWS = (1, 8)
PLAIN = "without the output"
WARM_UP = 20


def main(
    bundle: Annotated[Path, typer.Option(help="The bundle of a classifier.", exists=True)] = SHIPPED,
    runs: Annotated[int, typer.Option(help="Batches of each size.")] = 600,
) -> None:
    graph = convert_graph(load_bundle(bundle).graph, "int8")
    full, plain, again = (
        OnnxRuntime(graph.SerializeToString()),
        *(OnnxRuntime(older_graph(graph).SerializeToString()) for _ in "ab"),
    )
    ways: dict[str, Callable[[Batch], object]] = {
        PLAIN: plain.run,
        "without it, in a second session": again.run,
        "with it, not asked for": full.run,
        "with it, asked for": full.run_with_vectors,
    }
    print("| texts | way | CPU time, ms | ratio | middle half of ratios |")
    print("|--:|---|--:|--:|--:|")
    for rows in ROWS:
        seconds = time_ways(ways, rows, runs)
        for name, values in seconds.items():
            low, middle, high = np.percentile(values / seconds[PLAIN], (25, 50, 75))
            print(f"| {rows} | {name} | {np.median(values) * 1000:.3f} | {middle:.4f} | {low:.3f}–{high:.3f} |")


def time_ways(ways: dict[str, Callable[[Batch], object]], rows: int, runs: int) -> dict[str, NDArray[np.float64]]:
    """Return the CPU seconds of each way for each batch, (runs,)."""
    rng, order = np.random.default_rng(0), random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs + WARM_UP):
        batch = collate([random_text(rng) for _ in range(rows)], pad_id=1)
        for name in order.sample(list(ways), len(ways)):
            started_s = time.thread_time()
            ways[name](batch)
            seconds[name].append(time.thread_time() - started_s)
    return {name: np.asarray(values[WARM_UP:]) for name, values in seconds.items()}


def random_text(rng: np.random.Generator) -> Encoding:
    length = int(rng.integers(TOKENS[0], TOKENS[1] + 1))
    return Encoding(rng.integers(*IDS, length), np.zeros(length, np.int64), False, "en")


if __name__ == "__main__":
    typer.run(main)
