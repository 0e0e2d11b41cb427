"""The methods beside Heed, with the settings to try. Methods of libraries run in a separate environment."""

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
from tests.bench.recommend_quality.simple import Rankings, most_popular, own_most_frequent, rank_randomly, tifu_knn

PEERS = Path(__file__).parent / "peers"
PYTHON = Path(".venv/bench-recommend/bin/python")

Setting = Mapping[str, object]
Rank = Callable[[Split, Setting], Iterable[tuple[Setting, Rankings]]]


@dataclass(frozen=True, slots=True)
class Method:
    """A method. `rank` ranks all items for the users of a split, (users, items), with a setting of `settings`.

    It may yield several rankings, such as those of a training at several epochs. Each comes with the setting
    for it alone.
    """

    name: str
    rank: Rank
    settings: Sequence[Setting] = ({},)


def as_rank(function: Callable[..., Rankings]) -> Rank:
    """Return the `rank` of a function that takes the split, and the values of a setting by name."""

    def rank(split: Split, setting: Setting) -> Iterator[tuple[Setting, Rankings]]:
        yield setting, function(split, **setting)

    return rank


def grid(**values: Sequence[object]) -> list[Setting]:
    return [dict(zip(values, combination, strict=True)) for combination in product(*values.values())]


def simple() -> Iterator[Method]:
    yield Method("popularity", as_rank(most_popular), grid(days=(None, 14, 30, 60, 90, 180)))
    yield Method("the user's most frequent", as_rank(own_most_frequent), grid(tie=("recent", "popular")))
    baskets = grid(
        neighbours=(100, 300),
        own=(0.1, 0.3, 0.5, 0.7, 0.9),
        groups=(3, 7, 15),
        in_group=(0.9,),
        between=(0.6, 0.8, 1.0),
        recent_days=(30,),
    )
    yield Method("TIFU-kNN", as_rank(tifu_knn), baskets)


def ease() -> Method:
    return Method("EASE", as_rank(linear), grid(ridge=(100.0, 300.0, 1000.0)))


def slit_and_slist() -> Iterator[Method]:
    """Yield SLIT and SLIST with settings near the best ones of a first search on the inner split of MovieLens."""
    settings = {"ridge": (100.0, 300.0, 1000.0), "past": (4.0,), "asked": (5.0, 6.0, 8.0, 11.0)}
    yield Method("SLIT", as_rank(linear), grid(after=(1.0,), ahead=(2.0, 4.0), **settings))
    yield Method("SLIST", as_rank(linear), grid(after=(0.7, 0.9, 0.97), ahead=(4.0,), **settings))


def random_method() -> Method:
    return Method("random", as_rank(rank_randomly), grid(seed=(0,)))


def matrices() -> Iterator[Method]:
    sizes, weights = (5, 20, 50, 100, 200, 500, 1000), ("counts", "log", "once")
    grids = {
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
    for name, settings in grids.items():
        yield Method(name, as_rank(matrix), settings)


def matrix(split: Split, **setting: object) -> Rankings:
    ((_, rankings),) = run_peer("matrices.py", split, setting)
    return rankings


def sasrec(epochs: Sequence[int], **values: Sequence[object]) -> Method:
    """Return SASRec with RecTools' defaults except `values`. A training is ranked after each number of epochs."""
    return Method(
        "SASRec", sequences, [{**setting, "epochs": epochs} for setting in grid(method=("sasrec",), **values)]
    )


def bert4rec(epochs: Sequence[int], **values: Sequence[object]) -> Method:
    return Method(
        "BERT4Rec", sequences, [{**setting, "epochs": epochs} for setting in grid(method=("bert4rec",), **values)]
    )


def sequences(split: Split, setting: Setting) -> Iterator[tuple[Setting, Rankings]]:
    for name, rankings in run_peer("sequences.py", split, setting):
        yield {**setting, "epochs": [int(name)]}, rankings


def run_peer(program: str, split: Split, setting: Setting) -> list[tuple[str, Rankings]]:
    """Return the named rankings of a program of `peers/`, run on one thread. Raise RuntimeError if it fails."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save(split, folder / "split.npz")
        (folder / "setting.json").write_text(json.dumps(setting))
        (folder / "rankings").mkdir()
        command = [str(PYTHON), str(PEERS / program), *(str(folder / name) for name in ("split.npz", "setting.json"))]
        process = subprocess.run(
            [*command, str(folder / "rankings")], env=os.environ | one_thread(), capture_output=True, text=True
        )
        if process.returncode:
            raise RuntimeError(f"{program} with {setting} failed:\n{process.stderr[-2000:]}")
        return [(path.stem, np.load(path)) for path in sorted((folder / "rankings").iterdir())]


def one_thread() -> dict[str, str]:
    """Return variables for one thread. Memory is not returned between steps, which would take as long as a step."""
    variables = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(4 << 30))
    return variables | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def save(split: Split, path: Path) -> None:
    """Save the training data, user by user. `offsets` (users + 1,) index events, `asked` the ranked users."""
    users = split.training.users
    positions = {user: index for index, user in enumerate(users)}
    lengths = [len(sequence) for sequence in users.values()]
    np.savez(
        path,
        items=np.concatenate([sequence.items for sequence in users.values()]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        asked=np.asarray([positions[user] for user in split.users]),
        item_count=len(split.training.ids),
    )
