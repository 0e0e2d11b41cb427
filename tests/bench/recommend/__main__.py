"""Recommendation beside its limit: the whole service through HAProxy, and the same scoring alone, in turns.

Prints each round, then the medians and their bounds. Also prints the time of the ranking without a service and, if its
environment is installed, of another library. Then measures the gain and loss of an index. Run with
`make bench-recommend`. On a busy machine, only the ratios are meaningful, and they are noisy.
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
    create_large_catalogue,
    make_browsing_users,
    make_users,
)
from tests.bench.recommend_quality.methods import PYTHON
from tests.support.local_service import Service, free_port

MAX_TIME_RATIO, MIN_RATE_RATIO = 1.5, 0.75


@dataclass(frozen=True, slots=True)
class RoundResult:
    """The results of the service and of the limit in a round: milliseconds, or answers per second."""

    heed: float
    limit: float

    @property
    def ratio(self) -> float:
        return self.heed / self.limit


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    unit: str
    holds: Callable[[float], bool]
    bound: str


TARGETS = (
    Target(
        f"{CANDIDATES} candidates, {EVENTS} events, 1 connection: p50",
        "ms",
        lambda r: r <= MAX_TIME_RATIO,
        f"<= {MAX_TIME_RATIO}",
    ),
    Target(
        f"all of {LARGE_ITEMS} items, beside one product: p50",
        "ms",
        lambda r: r <= MAX_TIME_RATIO,
        f"<= {MAX_TIME_RATIO}",
    ),
    Target(
        f"{CANDIDATES} candidates, {EVENTS} events, 64 connections",
        "/s",
        lambda r: r >= MIN_RATE_RATIO,
        f">= {MIN_RATE_RATIO}",
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-recommend")
    parser.add_argument("--bundle", type=Path, default=SHIPPED_RECOMMEND)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds per measurement")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--indexed", type=int, default=ITEMS, help="items of the catalogue with an index; 0: none")
    options = parser.parse_args()
    if wrk_version() is None:
        sys.exit(MISSING)
    with tempfile.TemporaryDirectory(prefix="heed-bench-") as folder:
        run(options.bundle.resolve(), Path(folder), options.rounds, options.seconds, options.replicas)
    if options.indexed:
        command = [
            "-m",
            "tests.bench.recommend.indexed",
            "--bundle",
            str(options.bundle),
            "--items",
            str(options.indexed),
        ]
        subprocess.run([sys.executable, *command], check=True)


def run(bundle: Path, data_dir: Path, rounds: int, seconds: float, replicas: int) -> None:
    loaded = load_bundle(bundle)
    recommender = load_recommender(loaded)
    create_large_catalogue(data_dir / FOLDER, loaded, recommender)
    environment = {"HEED_RECOMMEND_BUNDLE": str(bundle), "HEED_DATA_DIR": str(data_dir)}
    service = Service(SHIPPED, free_port(), replicas, environment)
    try:
        url = f"http://127.0.0.1:{service.port}/v1/recommend"
        small = _bodies(make_users(_ids(data_dir / FOLDER / recommender.catalogue_name)))
        large = _bodies(make_browsing_users(_ids(data_dir / FOLDER / LARGE)))
        results_by_round: list[list[RoundResult]] = []
        for index in range(rounds):
            results_by_round.append(
                [
                    RoundResult(
                        _require_success(closed_loop(url, small, 1, seconds)).p50_ms,
                        measure(bundle, data_dir, "candidates", 1, seconds).p50_ms,
                    ),
                    RoundResult(
                        _require_success(closed_loop(url, large, 1, seconds)).p50_ms,
                        measure(bundle, data_dir, "product", 1, seconds).p50_ms,
                    ),
                    RoundResult(
                        _per_s(_require_success(closed_loop(url, small, 64, seconds))),
                        measure(bundle, data_dir, "candidates", replicas, seconds).per_s,
                    ),
                ]
            )
            print(
                f"round {index + 1}: "
                + "  ".join(_summary(*pair) for pair in zip(TARGETS, results_by_round[-1], strict=True))
            )
    finally:
        service.stop()
    alone = measure(bundle, data_dir, "ours", 1, seconds)
    print(
        "\n".join(
            [
                "",
                "| | Heed | limit | ratio | bound | |",
                "|---|--:|--:|--:|--:|---|",
                *map(_row, TARGETS, zip(*results_by_round, strict=True)),
                "",
                f"Our ranking of {CANDIDATES} candidates without a service: {alone.p50_ms:.2f} ms",
                *_library(len(_ids(data_dir / FOLDER / recommender.catalogue_name)), seconds),
            ]
        )
    )


def _library(items: int, seconds: float) -> list[str]:
    """Return the lines with the times of `implicit`."""
    if not PYTHON.exists():
        return [f"implicit was not measured. Install it with: make {PYTHON.parent.parent}/installed"]
    candidates = _implicit(items, CANDIDATES, TOP_K, seconds)
    catalogue = _implicit(LARGE_ITEMS, 0, LARGE_TOP_K, seconds)
    return [
        f"implicit, {EVENTS} events folded in, {CANDIDATES} candidates: {candidates.p50_ms:.2f} ms",
        f"implicit, all of {LARGE_ITEMS} items: {catalogue.p50_ms:.2f} ms",
    ]


def _implicit(items: int, candidates: int, top_k: int, seconds: float) -> Limit:
    script = Path(__file__).parent / "peers" / "factors.py"
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
    command = [str(PYTHON), str(script), *map(str, (items, candidates, top_k, seconds))]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return Limit(**json.loads(process.stdout))


def _row(target: Target, results: Sequence[RoundResult]) -> str:
    ratio = median(result.ratio for result in results)
    heed, limit = median(result.heed for result in results), median(result.limit for result in results)
    verdict = "met" if target.holds(ratio) else "missed"
    return f"| {target.name} | {heed:.2f} {target.unit} | {limit:.2f} | {ratio:.2f} | {target.bound} | {verdict} |"


def _summary(target: Target, result: RoundResult) -> str:
    return f"{result.heed:.2f} and {result.limit:.2f} {target.unit} ({result.ratio:.2f})"


def _ids(path: Path) -> list[str]:
    with closing(Catalogue(path)) as catalogue:
        return [item_id for item_id in catalogue.snapshot().ids if item_id]


def _bodies(users: Sequence[dict[str, Any]]) -> list[bytes]:
    return [json.dumps({"inputs": user}).encode() for user in users]


def _require_success(load: Load) -> Load:
    """Return the load. Raise LoadError if any request failed."""
    if load.refused or load.broken or not load.answered:
        raise LoadError(f"{load.refused} requests were refused and {load.broken} broken, {load.answered} answered")
    return load


def _per_s(load: Load) -> float:
    return load.answered / load.seconds


if __name__ == "__main__":
    main()
