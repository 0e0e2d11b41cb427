"""A large catalogue with a vector index beside an exact ranking: time and recall.

Runs in one process with one numpy thread, without a service. Each vector is a shipped item's vector plus the difference
of two random ones, so there are as many themes as items. A user's history has a few themes. Its items are not ranked.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from models.bundle import SHIPPED_RECOMMEND, load_bundle
from models.catalogue.vector_index import PROBE_SHARES, VectorIndex, build_index, save_index
from models.ranking.bundle_files import load_own_catalogue, load_recommender
from models.ranking.events import EVENT_TYPES, History
from models.ranking.recommender import Array, Ranked, Recommender
from tests.bench.recommend.users import EVENTS, LARGE_TOP_K

ITEMS, USERS, THEMES = 300_000, 40, 8
SPREADS = (0.5, 1.0, None)
"""Scales of the added differences. At 1 they are as large as the items. None is noise without themes."""

_CHUNK = 10_000


def make_vectors(items: Array, count: int, spread: float | None) -> tuple[Array, NDArray[np.int64]]:
    """Return vectors (count, width) with the mean length of the items, and their source items (count,)."""
    rng = np.random.default_rng(17)
    length = np.linalg.norm(items, axis=1).mean()
    sources = rng.integers(0, len(items), count)
    vectors = np.empty((count, items.shape[1]), np.float32)
    for start in range(0, count, _CHUNK):
        chunk = sources[start : start + _CHUNK]
        if spread is None:
            moved = rng.normal(size=(len(chunk), items.shape[1]))
        else:
            first, second = (items[rng.integers(0, len(items), len(chunk))] for _ in range(2))
            noise = rng.normal(0, length / 5 / np.sqrt(items.shape[1]), (len(chunk), items.shape[1]))
            moved = items[chunk] + spread / np.sqrt(2) * (first - second) + spread * noise
        vectors[start : start + _CHUNK] = moved / np.linalg.norm(moved, axis=1, keepdims=True) * length
    return vectors, sources


def make_histories(vectors: Array, sources: NDArray[np.int64]) -> list[History]:
    rng = np.random.default_rng(18)
    users = []
    for _ in range(USERS):
        rows = rng.choice(np.flatnonzero(np.isin(sources, rng.choice(sources, THEMES))), EVENTS)
        ages = np.sort(rng.exponential(60, EVENTS))[::-1].astype(np.float32)
        users.append(History(vectors[rows], rows, np.full(EVENTS, EVENT_TYPES.index("purchase")), ages))
    return users


def rank_all(
    recommender: Recommender, users: Sequence[History], vectors: Array, index: VectorIndex | None
) -> tuple[float, list[Ranked]]:
    """Return the median milliseconds of a ranking, and the rankings."""
    times_s: list[float] = []
    rankings: list[Ranked] = []
    for user in users:
        allowed = np.ones(len(vectors), np.bool_)
        allowed[user.items] = False
        started_s = time.perf_counter()
        rankings.append(recommender.rank(user, vectors, None, LARGE_TOP_K, allowed, index=index))
        times_s.append(time.perf_counter() - started_s)
    return 1000 * median(times_s), rankings


def recall(exact: Sequence[Ranked], rankings: Sequence[Ranked], first: int) -> float:
    shared = (len(np.intersect1d(a.order[:first], b.order[:first])) for a, b in zip(exact, rankings, strict=True))
    return sum(shared) / first / len(exact)


def measure_catalogue(
    recommender: Recommender, items: Array, count: int, spread: float | None, log: Callable[[str], None]
) -> None:
    vectors, sources = make_vectors(items, count, spread)
    users = make_histories(vectors, sources)
    started_s = time.perf_counter()
    index = build_index(vectors, *recommender.query_subspace(vectors))
    build_s = time.perf_counter() - started_s
    with tempfile.TemporaryDirectory(prefix="heed-bench-") as folder:
        save_index(Path(folder) / "a.index", index)
        size = (Path(folder) / "a.index").stat().st_size
    kind = "noise" if spread is None else f"themes, spread {spread}"
    rank_all(recommender, users[:2], vectors, None)  # warm
    exact_ms, exact = rank_all(recommender, users, vectors, None)
    product_ms = 1000 * median(_time(lambda: vectors @ vectors[0]) for _ in users)
    log(f"\n{count} items ({kind}): built in {build_s:.0f} s, {size / 2**20:.0f} MB; a product {product_ms:.1f} ms\n")
    log("| | p50 of a ranking | of all products | recall at 10 | at 100 | |\n|---|--:|--:|--:|--:|---|")
    log(f"| all products | {exact_ms:.1f} ms | 1.00 | 1 | 1 | |")
    for probes in PROBE_SHARES:
        ranking_ms, rankings = rank_all(recommender, users, vectors, replace(index, probes=probes))
        note = "as built" if probes == index.probes else ""
        recalls = " | ".join(f"{recall(exact, rankings, first):.3f}" for first in (10, LARGE_TOP_K))
        log(f"| 1 list of {probes} | {ranking_ms:.1f} ms | {ranking_ms / exact_ms:.2f} | {recalls} | {note} |")


def _time(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path, default=SHIPPED_RECOMMEND)
    parser.add_argument("--items", type=int, default=ITEMS)
    options = parser.parse_args()
    bundle = load_bundle(options.bundle)
    recommender = load_recommender(bundle)
    _, _, items = load_own_catalogue(bundle)
    with threadpool_limits(1, user_api="blas"):
        for spread in SPREADS:
            measure_catalogue(recommender, items, options.items, spread, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
