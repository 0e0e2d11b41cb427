"""A large catalogue with a vector index beside all products: what a ranking takes, and what of the exact one it finds.

In one process with one thread of numpy's, without a service. Vectors are made from the shipped items': each is one of
them, moved by the difference of two others, so that there are as many themes as items. A user's history is of a few
themes, and what is in it is not ranked.
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
"""Of the differences that are added; at 1 they are as large as the items, None is noise without any themes."""

_CHUNK = 10_000


def made(items: Array, count: int, spread: float | None) -> tuple[Array, NDArray[np.int64]]:
    """(count, width) vectors as long as the items', and (count,) which item each is made from."""
    rng = np.random.default_rng(17)
    length = np.linalg.norm(items, axis=1).mean()
    sources = rng.integers(0, len(items), count)
    found = np.empty((count, items.shape[1]), np.float32)
    for start in range(0, count, _CHUNK):
        some = sources[start : start + _CHUNK]
        if spread is None:
            moved = rng.normal(size=(len(some), items.shape[1]))
        else:
            others, more = (items[rng.integers(0, len(items), len(some))] for _ in range(2))
            noise = rng.normal(0, length / 5 / np.sqrt(items.shape[1]), (len(some), items.shape[1]))
            moved = items[some] + spread / np.sqrt(2) * (others - more) + spread * noise
        found[start : start + _CHUNK] = moved / np.linalg.norm(moved, axis=1, keepdims=True) * length
    return found, sources


def histories(vectors: Array, sources: NDArray[np.int64]) -> list[History]:
    rng = np.random.default_rng(18)
    found = []
    for _ in range(USERS):
        rows = rng.choice(np.flatnonzero(np.isin(sources, rng.choice(sources, THEMES))), EVENTS)
        ages = np.sort(rng.exponential(60, EVENTS))[::-1].astype(np.float32)
        found.append(History(vectors[rows], rows, np.full(EVENTS, EVENT_TYPES.index("purchase")), ages))
    return found


def ranked(
    recommender: Recommender, users: Sequence[History], vectors: Array, index: VectorIndex | None
) -> tuple[float, list[Ranked]]:
    """Milliseconds of a ranking, the median, and the rankings."""
    taken_s: list[float] = []
    found: list[Ranked] = []
    for user in users:
        allowed = np.ones(len(vectors), np.bool_)
        allowed[user.items] = False
        begun_s = time.perf_counter()
        found.append(recommender.rank(user, vectors, None, LARGE_TOP_K, allowed, index=index))
        taken_s.append(time.perf_counter() - begun_s)
    return 1000 * median(taken_s), found


def recall(exact: Sequence[Ranked], found: Sequence[Ranked], first: int) -> float:
    shared = (len(np.intersect1d(one.order[:first], two.order[:first])) for one, two in zip(exact, found, strict=True))
    return sum(shared) / first / len(exact)


def measured(
    recommender: Recommender, items: Array, count: int, spread: float | None, tell: Callable[[str], None]
) -> None:
    vectors, sources = made(items, count, spread)
    users = histories(vectors, sources)
    begun_s = time.perf_counter()
    index = build_index(vectors, *recommender.query_subspace(vectors))
    took_s = time.perf_counter() - begun_s
    with tempfile.TemporaryDirectory(prefix="heed-bench-") as folder:
        save_index(Path(folder) / "a.index", index)
        size = (Path(folder) / "a.index").stat().st_size
    what = "noise" if spread is None else f"themes, spread {spread}"
    ranked(recommender, users[:2], vectors, None)  # warm
    exact_ms, exact = ranked(recommender, users, vectors, None)
    product_ms = 1000 * median(_timed(lambda: vectors @ vectors[0]) for _ in users)
    tell(f"\n{count} items ({what}): built in {took_s:.0f} s, {size / 2**20:.0f} MB; one product {product_ms:.1f} ms\n")
    tell("| | a ranking: p50 | of all products | recall at 10 | at 100 | |\n|---|--:|--:|--:|--:|---|")
    tell(f"| all products | {exact_ms:.1f} ms | 1.00 | 1 | 1 | |")
    for searched in PROBE_SHARES:
        took_ms, found = ranked(recommender, users, vectors, replace(index, probes=searched))
        chosen = "as built" if searched == index.probes else ""
        at = " | ".join(f"{recall(exact, found, first):.3f}" for first in (10, LARGE_TOP_K))
        tell(f"| 1 list of {searched} | {took_ms:.1f} ms | {took_ms / exact_ms:.2f} | {at} | {chosen} |")


def _timed(work: Callable[[], object]) -> float:
    begun_s = time.perf_counter()
    work()
    return time.perf_counter() - begun_s


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path, default=SHIPPED_RECOMMEND)
    parser.add_argument("--items", type=int, default=ITEMS)
    given = parser.parse_args()
    bundle = load_bundle(given.bundle)
    recommender = load_recommender(bundle)
    _, _, items = load_own_catalogue(bundle)
    with threadpool_limits(1, user_api="blas"):
        for spread in SPREADS:
            measured(recommender, items, given.items, spread, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
