"""The limit: the same scoring in plain numpy and nothing around it, in one process of one thread for each replica.

As a command it is one of the processes: ids are looked up, vectors gathered, candidates ranked, for as long as asked;
`measure` starts them together. No server, no JSON, no queue. `ours` ranks as the service does, `product` is one matrix
product with the large catalogue.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
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
from tests.bench.recommend.plain import Plain
from tests.bench.recommend.users import LARGE, users

Work = Literal["candidates", "ours", "product"]
_DAY_S = 86_400
_WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Limit:
    p50_ms: float
    per_s: float


def measure(bundle: Path, shelf: Path, work: Work, processes: int, seconds: float) -> Limit:
    command = [sys.executable, "-m", "tests.bench.recommend.bare_ranking", str(bundle), str(shelf), work, str(seconds)]
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        for _ in range(processes)
    ]
    for process in started:
        _read(process)  # loaded and warm
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
    found = [_read(process) for process in started]
    for process in started:
        process.wait()
    return Limit(median(one["p50_ms"] for one in found), sum(one["per_s"] for one in found))


def _read(process: subprocess.Popen[bytes]) -> dict[str, float]:
    assert process.stdout is not None
    found: dict[str, float] = json.loads(process.stdout.readline())
    return found


def rank(
    by: Plain | Recommender, own: Snapshot, trained: NDArray[np.int64], user: dict[str, Any]
) -> list[tuple[str, float]]:
    """Of candidates in the catalogue that the history is of; `trained` are the numbers of its rows' items."""
    numbers = np.array([own.row_by_id[one["item_id"]] for one in user["candidates"]])
    history, vectors = _history(own, user), own.vectors[numbers]
    history = replace(history, training_indices=trained[history.items])
    if isinstance(by, Plain):
        order, scores, _ = by.rank(history, vectors, numbers, user["top_k"], trained[numbers])
    else:
        found = by.rank(history, vectors, numbers, user["top_k"], training_indices=trained[numbers])
        order, scores = found.order, found.scores
    return [(own.ids[numbers[place]], score) for place, score in zip(order, scores.tolist(), strict=True)]


def _history(snapshot: Snapshot, user: dict[str, Any]) -> History:
    events = user["history"]
    rows = np.array([snapshot.row_by_id[event["item_id"]] for event in events])
    times = np.array([datetime.fromisoformat(event["at"]).timestamp() for event in events])
    kinds = np.array([EVENT_TYPES.index(event["event"]) for event in events])
    return History(snapshot.vectors[rows], rows, kinds, ((times[-1] - times) / _DAY_S).astype(np.float32))


def _work(bundle: Path, shelf: Path, work: Work) -> Callable[[], object]:
    recommender = load_recommender(load_bundle(bundle))
    name = LARGE if work == "product" else recommender.catalogue_name
    with closing(Catalogue(shelf / FOLDER / name)) as catalogue:
        snapshot = catalogue.snapshot()
    if work == "product":
        vectors, one = snapshot.vectors, np.array(snapshot.vectors[0])
        return lambda: vectors @ one
    by = recommender if work == "ours" else Plain(load_file(bundle / WEIGHTS))
    trained, asked = (
        recommender.cached_training_indices(snapshot.ids, snapshot.vectors),
        cycle(users([item_id for item_id in snapshot.ids if item_id])),
    )
    return lambda: rank(by, snapshot, trained, next(asked))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("shelf", type=Path)
    parser.add_argument("work", choices=("candidates", "ours", "product"))
    parser.add_argument("seconds", type=float)
    given = parser.parse_args()
    work = _work(given.bundle, given.shelf, given.work)
    for _ in range(_WARM_UP):
        work()
    print("{}", flush=True)
    sys.stdin.read()  # closed when all processes are ready
    taken_s: list[float] = []
    started_s = time.perf_counter()
    while (begun_s := time.perf_counter()) - started_s < given.seconds:
        work()
        taken_s.append(time.perf_counter() - begun_s)
    print(json.dumps({"p50_ms": median(taken_s) * 1000, "per_s": len(taken_s) / sum(taken_s)}), flush=True)


if __name__ == "__main__":
    main()
