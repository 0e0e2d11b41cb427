"""The limit: the same scoring in plain numpy without a service, in one process of one thread per replica.

As a command, it is such a process: it looks up ids, gathers vectors and ranks candidates for some seconds. `measure`
starts the processes together. There is no server, no JSON and no queue. `ours` ranks with the recommender of the
service, `product` is a matrix product with the large catalogue.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from models.bundle import load_bundle
from models.catalogue.snapshot import Snapshot
from models.catalogue.store import Catalogue
from models.ranking.bundle_files import WEIGHTS, load_recommender
from models.ranking.events import EVENT_TYPES, History
from models.ranking.recommender import Recommender
from service.registry.catalogues import FOLDER
from tests.bench.harness.parallel import run_together, wait_for_start
from tests.bench.recommend.plain import Plain
from tests.bench.recommend.users import LARGE, make_users

Work = Literal["candidates", "ours", "product"]
_DAY_S = 86_400
_WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Limit:
    p50_ms: float
    per_s: float


def measure(bundle: Path, data_dir: Path, work: Work, processes: int, seconds: float) -> Limit:
    command = [
        sys.executable,
        "-m",
        "tests.bench.recommend.bare_ranking",
        str(bundle),
        str(data_dir),
        work,
        str(seconds),
    ]
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
    results = run_together(command, processes, environment)
    return Limit(median(result["p50_ms"] for result in results), sum(result["per_s"] for result in results))


def rank(
    recommender: Plain | Recommender, snapshot: Snapshot, training_indices: NDArray[np.int64], user: dict[str, Any]
) -> list[tuple[str, float]]:
    """Rank the candidates of a user in the catalogue. `training_indices` are those of the catalogue's rows."""
    rows = np.array([snapshot.row_by_id[candidate["item_id"]] for candidate in user["candidates"]])
    history, vectors = _history(snapshot, user), snapshot.vectors[rows]
    history = replace(history, training_indices=training_indices[history.items])
    if isinstance(recommender, Plain):
        order, scores, _ = recommender.rank(history, vectors, rows, user["top_k"], training_indices[rows])
    else:
        ranked = recommender.rank(history, vectors, rows, user["top_k"], training_indices=training_indices[rows])
        order, scores = ranked.order, ranked.scores
    return [(snapshot.ids[rows[index]], score) for index, score in zip(order, scores.tolist(), strict=True)]


def _history(snapshot: Snapshot, user: dict[str, Any]) -> History:
    events = user["history"]
    rows = np.array([snapshot.row_by_id[event["item_id"]] for event in events])
    times = np.array([datetime.fromisoformat(event["at"]).timestamp() for event in events])
    kinds = np.array([EVENT_TYPES.index(event["event"]) for event in events])
    return History(snapshot.vectors[rows], rows, kinds, ((times[-1] - times) / _DAY_S).astype(np.float32))


def _work(bundle: Path, data_dir: Path, work: Work) -> Callable[[], object]:
    recommender = load_recommender(load_bundle(bundle))
    name = LARGE if work == "product" else recommender.catalogue_name
    with closing(Catalogue(data_dir / FOLDER / name)) as catalogue:
        snapshot = catalogue.snapshot()
    if work == "product":
        vectors, query = snapshot.vectors, np.array(snapshot.vectors[0])
        return lambda: vectors @ query
    ranker = recommender if work == "ours" else Plain(load_file(bundle / WEIGHTS))
    training_indices, requests = (
        recommender.cached_training_indices(snapshot.ids, snapshot.vectors),
        cycle(make_users([item_id for item_id in snapshot.ids if item_id])),
    )
    return lambda: rank(ranker, snapshot, training_indices, next(requests))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("work", choices=("candidates", "ours", "product"))
    parser.add_argument("seconds", type=float)
    options = parser.parse_args()
    work = _work(options.bundle, options.data_dir, options.work)
    for _ in range(_WARM_UP):
        work()
    wait_for_start()
    times_s: list[float] = []
    started_s = time.perf_counter()
    while (step_started_s := time.perf_counter()) - started_s < options.seconds:
        work()
        times_s.append(time.perf_counter() - step_started_s)
    print(json.dumps({"p50_ms": median(times_s) * 1000, "per_s": len(times_s) / sum(times_s)}), flush=True)


if __name__ == "__main__":
    main()
