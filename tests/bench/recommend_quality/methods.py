"""Methods beside Heed and the settings each is tried with. Those of libraries run in an environment of their own."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from models.data.interactions import Split
from tests.bench.recommend_quality.linear import linear
from tests.bench.recommend_quality.simple import Rankings, by_chance, most_popular, own_most_frequent, tifu_knn

PEERS = Path(__file__).parent / "peers"
PYTHON = Path(".venv/bench-recommend/bin/python")

Setting = Mapping[str, object]
Rank = Callable[[Split, Setting], Iterable[tuple[Setting, Rankings]]]


@dataclass(frozen=True, slots=True)
class Method:
    """`rank` gives the split's users rankings of all items, (users, items), with one of the `settings`.

    It may give several, each with a setting that leads to that one alone: those of one training at several epochs.
    """

    name: str
    rank: Rank
    settings: Sequence[Setting] = ({},)


def directly(function: Callable[..., Rankings]) -> Rank:
    """Of a function that takes the split and a setting's values by name."""

    def rank(split: Split, setting: Setting) -> Iterator[tuple[Setting, Rankings]]:
        yield setting, function(split, **setting)

    return rank


def grid(**values: Sequence[object]) -> list[Setting]:
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def simple() -> Iterator[Method]:
    yield Method("popularity", directly(most_popular), grid(days=(None, 14, 30, 60, 90, 180)))
    yield Method("the user's most frequent", directly(own_most_frequent), grid(tie=("recent", "popular")))
    baskets = grid(
        neighbours=(100, 300),
        own=(0.1, 0.3, 0.5, 0.7, 0.9),
        groups=(3, 7, 15),
        in_group=(0.9,),
        between=(0.6, 0.8, 1.0),
        recent_days=(30,),
    )
    yield Method("TIFU-kNN", directly(tifu_knn), baskets)


def together() -> Method:
    return Method("EASE", directly(linear), grid(ridge=(100.0, 300.0, 1000.0)))


def following() -> Iterator[Method]:
    """Around the settings that were best in a first look at the inner split of MovieLens."""
    settings = {"ridge": (100.0, 300.0, 1000.0), "past": (4.0,), "asked": (5.0, 6.0, 8.0, 11.0)}
    yield Method("SLIT", directly(linear), grid(after=(1.0,), ahead=(2.0, 4.0), **settings))
    yield Method("SLIST", directly(linear), grid(after=(0.7, 0.9, 0.97), ahead=(4.0,), **settings))


def chance() -> Method:
    return Method("random", directly(by_chance), grid(seed=(0,)))


def matrices() -> Iterator[Method]:
    sizes, weights = (5, 20, 50, 100, 200, 500, 1000), ("counts", "log", "once")
    every = {
        "item-kNN, cosine": grid(method=("cosine",), K=sizes, weights=weights),
        "item-kNN, tf-idf": grid(method=("tfidf",), K=sizes, weights=weights),
        "item-kNN, BM25": grid(
            method=("bm25",), K=sizes, K1=(1.2, 10.0, 100.0), B=(0.2, 0.5, 0.8), weights=("counts", "once")
        ),
        "ALS": grid(
            method=("als",),
            factors=(128, 256, 512),
            regularization=(10.0, 30.0, 100.0),
            alpha=(0.3, 1.0),
            iterations=(15,),
            weights=("counts", "log"),
        ),
        "BPR": grid(
            method=("bpr",),
            factors=(64, 128),
            learning_rate=(0.02, 0.1),
            regularization=(0.003, 0.03),
            iterations=(100, 400),
        ),
    }
    for name, settings in every.items():
        yield Method(name, directly(matrix), settings)


def matrix(split: Split, **setting: object) -> Rankings:
    ((_, rankings),) = by_peer("matrices.py", split, setting)
    return rankings


def sasrec(epochs: Sequence[int], **values: Sequence[object]) -> Method:
    """RecTools' own defaults but for what `values` names; of one training, at each number of epochs."""
    return Method("SASRec", sequences, [{**one, "epochs": epochs} for one in grid(method=("sasrec",), **values)])


def bert4rec(epochs: Sequence[int], **values: Sequence[object]) -> Method:
    return Method("BERT4Rec", sequences, [{**one, "epochs": epochs} for one in grid(method=("bert4rec",), **values)])


def sequences(split: Split, setting: Setting) -> Iterator[tuple[Setting, Rankings]]:
    for name, rankings in by_peer("sequences.py", split, setting):
        yield {**setting, "epochs": [int(name)]}, rankings


def by_peer(program: str, split: Split, setting: Setting) -> list[tuple[str, Rankings]]:
    """What a program of `peers/` ranks on one thread, with the name it gives each."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save(split, folder / "split.npz")
        (folder / "setting.json").write_text(json.dumps(setting))
        (folder / "rankings").mkdir()
        command = [str(PYTHON), str(PEERS / program), *(str(folder / name) for name in ("split.npz", "setting.json"))]
        done = subprocess.run(
            [*command, str(folder / "rankings")], env=os.environ | one_thread(), capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{program} with {setting} failed:\n{done.stderr[-2000:]}")
        return [(path.stem, np.load(path)) for path in sorted((folder / "rankings").iterdir())]


def one_thread() -> dict[str, str]:
    """And memory is kept between steps, which else takes as long as they do."""
    kept = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(4 << 30))
    return kept | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def save(split: Split, path: Path) -> None:
    """All of training, user after user: `offsets` (users + 1,) into the events, `asked` the places of asked users."""
    users = split.training.users
    place = {user: number for number, user in enumerate(users)}
    lengths = [len(trail) for trail in users.values()]
    np.savez(
        path,
        items=np.concatenate([trail.items for trail in users.values()]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        asked=np.asarray([place[user] for user in split.users]),
        item_count=len(split.training.ids),
    )
