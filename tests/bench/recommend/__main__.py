"""Recommendation beside its limit: the whole service through HAProxy, and the same scoring alone, turn and turn about.

Prints each round and the medians of all of them, with the bound that each figure is held to; beside them what the
ranking takes without a service, and another library's own prediction, where its environment is there; then what an
index gains and loses. Run with `make bench-recommend`; on a machine that does other things too, only the ratios say
anything, and they not much.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from models.bundle import SHIPPED, SHIPPED_RECOMMEND, load_bundle
from models.catalogue.store import Catalogue
from models.ranking.bundle_files import load_recommender
from service.registry.catalogues import FOLDER
from tests.bench.harness.closed_loop import MISSING, Load, LoadError, closed_loop, wrk_version
from tests.bench.recommend.bare_ranking import Limit, measure
from tests.bench.recommend.indexed import ITEMS
from tests.bench.recommend.users import (
    CANDIDATES,
    EVENTS,
    LARGE,
    LARGE_ITEMS,
    LARGE_TOP_K,
    TOP_K,
    browsing,
    place_large,
    users,
)
from tests.bench.recommend_quality.methods import PYTHON
from tests.support.local_service import Service, free_port

MOST, LEAST = 1.5, 0.75


@dataclass(frozen=True, slots=True)
class Reading:
    """What the service gave and what the limit did, in one round: milliseconds, or answers a second."""

    heed: float
    limit: float

    @property
    def ratio(self) -> float:
        return self.heed / self.limit


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    unit: str
    holds: Callable[[float], bool]
    bound: str


FIGURES = (
    Figure(f"{CANDIDATES} candidates, {EVENTS} events, 1 connection: p50", "ms", lambda r: r <= MOST, f"<= {MOST}"),
    Figure(f"all of {LARGE_ITEMS} items, beside one product: p50", "ms", lambda r: r <= MOST, f"<= {MOST}"),
    Figure(f"{CANDIDATES} candidates, {EVENTS} events, 64 connections", "/s", lambda r: r >= LEAST, f">= {LEAST}"),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-recommend")
    parser.add_argument("--bundle", type=Path, default=SHIPPED_RECOMMEND)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--indexed", type=int, default=ITEMS, help="items of the catalogue with an index; 0: none")
    given = parser.parse_args()
    if wrk_version() is None:
        sys.exit(MISSING)
    with tempfile.TemporaryDirectory(prefix="heed-bench-") as folder:
        run(given.bundle.resolve(), Path(folder), given.rounds, given.seconds, given.replicas)
    if given.indexed:
        command = ["-m", "tests.bench.recommend.indexed", "--bundle", str(given.bundle), "--items", str(given.indexed)]
        subprocess.run([sys.executable, *command], check=True)


def run(bundle: Path, shelf: Path, rounds: int, seconds: float, replicas: int) -> None:
    loaded = load_bundle(bundle)
    recommender = load_recommender(loaded)
    place_large(shelf / FOLDER, loaded, recommender)
    chosen = {"HEED_RECOMMEND_BUNDLE": str(bundle), "HEED_DATA_DIR": str(shelf)}
    service = Service(SHIPPED, free_port(), replicas, chosen)
    try:
        url = f"http://127.0.0.1:{service.port}/v1/recommend"
        small = _bodies(users(_ids(shelf / FOLDER / recommender.catalogue_name)))
        large = _bodies(browsing(_ids(shelf / FOLDER / LARGE)))
        found: list[list[Reading]] = []
        for number in range(rounds):
            found.append(
                [
                    Reading(
                        _good(closed_loop(url, small, 1, seconds)).p50_ms,
                        measure(bundle, shelf, "candidates", 1, seconds).p50_ms,
                    ),
                    Reading(
                        _good(closed_loop(url, large, 1, seconds)).p50_ms,
                        measure(bundle, shelf, "product", 1, seconds).p50_ms,
                    ),
                    Reading(
                        _per_s(_good(closed_loop(url, small, 64, seconds))),
                        measure(bundle, shelf, "candidates", replicas, seconds).per_s,
                    ),
                ]
            )
            print(f"round {number + 1}: " + "  ".join(_told(*pair) for pair in zip(FIGURES, found[-1], strict=True)))
    finally:
        service.stop()
    alone = measure(bundle, shelf, "ours", 1, seconds)
    print(
        "\n".join(
            [
                "",
                "| | Heed | limit | ratio | bound | |",
                "|---|--:|--:|--:|--:|---|",
                *map(_row, FIGURES, zip(*found, strict=True)),
                "",
                f"Our ranking of {CANDIDATES} candidates without a service: {alone.p50_ms:.2f} ms",
                *_library(len(_ids(shelf / FOLDER / recommender.catalogue_name)), seconds),
            ]
        )
    )


def _library(items: int, seconds: float) -> list[str]:
    """`implicit`'s own prediction."""
    if not PYTHON.exists():
        return [f"implicit was not measured; it needs: make {PYTHON.parent.parent}/installed"]
    few = _implicit(items, CANDIDATES, TOP_K, seconds)
    many = _implicit(LARGE_ITEMS, 0, LARGE_TOP_K, seconds)
    return [
        f"implicit, {EVENTS} events folded in, {CANDIDATES} candidates: {few.p50_ms:.2f} ms",
        f"implicit, all of {LARGE_ITEMS} items: {many.p50_ms:.2f} ms",
    ]


def _implicit(items: int, candidates: int, top_k: int, seconds: float) -> Limit:
    script = Path(__file__).parent / "peers" / "factors.py"
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
    command = [str(PYTHON), str(script), *map(str, (items, candidates, top_k, seconds))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return Limit(**json.loads(done.stdout))


def _row(figure: Figure, readings: Sequence[Reading]) -> str:
    ratio = median(one.ratio for one in readings)
    heed, limit = median(one.heed for one in readings), median(one.limit for one in readings)
    held = "met" if figure.holds(ratio) else "missed"
    return f"| {figure.name} | {heed:.2f} {figure.unit} | {limit:.2f} | {ratio:.2f} | {figure.bound} | {held} |"


def _told(figure: Figure, reading: Reading) -> str:
    return f"{reading.heed:.2f} and {reading.limit:.2f} {figure.unit} ({reading.ratio:.2f})"


def _ids(path: Path) -> list[str]:
    with closing(Catalogue(path)) as catalogue:
        return [item_id for item_id in catalogue.snapshot().ids if item_id]


def _bodies(asked: Sequence[dict[str, Any]]) -> list[bytes]:
    return [json.dumps({"inputs": one}).encode() for one in asked]


def _good(load: Load) -> Load:
    if load.refused or load.broken or not load.answered:
        raise LoadError(f"{load.refused} requests were refused and {load.broken} broken, of {load.answered}")
    return load


def _per_s(load: Load) -> float:
    return load.answered / load.seconds


if __name__ == "__main__":
    main()
