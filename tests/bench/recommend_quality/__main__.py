"""Heed's recommender beside popularity, neighbours, factors and other sequence models, on the same splits.

Run with `make bench-recommend-quality DATA=folder BASE=encoder`. Every method is tuned on the inner split: the
last-but-one basket of each user. Interrupted, it goes on where it stopped; give another `--out` to begin again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from models.bundle import load_bundle
from models.data.interactions import (
    Interactions,
    Split,
    draw_removed_items,
    hold_out_last,
    read_movielens,
    read_online_retail,
    remove_items,
)
from models.runtime.offline import open_text_encoder
from models.training.classification import CONFIGS
from models.training.history_network import HistoryConfig
from models.training.item_neighbours import NeighbourConfig
from models.training.recommendation import center_vectors, read_recommend_config
from tests.bench.recommend_quality import methods, newcomers, report
from tests.bench.recommend_quality.heed import HEED, Trained, ablations, shipped, trained
from tests.bench.recommend_quality.methods import Method
from tests.bench.recommend_quality.raw import RAW, raw_encoder
from tests.bench.recommend_quality.simple import most_popular
from tests.bench.recommend_quality.study import Row, Study, study

REMOVED, REMOVED_SEED = 0.1, 7
"""As in `models/configs/recommend.toml`: the encoder that ships saw none of these items beside others."""
HELD_BACK_SEED = 1
"""Of other items, with which methods are tuned, and with which it is found what newcomers are told."""
LEARNING: dict[str, Sequence[object]] = {"session_max_len": (100,), "batch_size": (32,)}
ON_MOVIELENS: dict[str, Any] = {
    "epochs": 2,
    "events": 32,
    "inner": 64,
    "id_dropout": 0.1,
    "halves": 0.0,
    "steps_of_user": 10,
    "horizon": 3,
    "often": -20.0,  # nobody rates a film twice
    "choose_scales": True,
    "neighbours": NeighbourConfig(
        weight=200.0, ridge=200.0, kept=1682, after=0.85, past=4.0, ahead=4.0, asked=8.0, popular=0.2
    ),
}
"""Of Heed's own schedule, what is otherwise for films. Neighbours are chosen on the rating before the last, alone, and
what they count beside attention there too, by Heed itself."""

PARTS = ("retail", "movielens", "removed")


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-recommend-quality", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the recommend data sets")
    parser.add_argument("--base", help="the encoder before any of these sets, for items by their texts alone")
    parser.add_argument("--movielens", type=Path, help="RecBole's wheel, or where it is installed")
    parser.add_argument("--bundle", type=Path, help="Heed's, for its rows: as it serves, and trained anew")
    parser.add_argument("--epochs", type=int, help="of Heed's trainings, instead of their own: all rows alike, quicker")
    parser.add_argument("--out", type=Path, default=Path("runs/recommend-quality"), help="results and where to go on")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--methods", nargs="+", default=("",), help="only those whose name begins with one of these")
    given = parser.parse_args()
    tables: dict[str, Sequence[Row]] = {}
    for part in given.parts:
        title, compared, every = parts(part, given)
        rows = [shipped(load_bundle(given.bundle), compared.split)] if given.bundle and part == "retail" else []
        own = heeds(part, given, compared.split.training.texts) if given.bundle else iter(())
        asked = []
        for method in chain(every, own):
            if method.name.casefold().startswith(tuple(name.casefold() for name in given.methods)):
                rows.append(compared.row(method))
                asked.append(method)
                tables[title] = rows
                report.write(given.out, tables)
                print(f"{part}: {method.name}: {rows[-1].views.overall}", flush=True)
        if part == "removed" and asked:
            told = "\n".join(at_least(given.data, compared, asked, rows))
            (given.out / "newcomers.md").write_text(told + "\n")
            print(told)
    print(report.write(given.out, tables))


def at_least(data: Path, compared: Study, asked: Sequence[Method], rows: Sequence[Row]) -> Iterator[str]:
    """Of the methods that know items by their texts, each with the setting that was best for it."""
    retail = hold_out_last(read_online_retail(data / "online_retail"))
    every, new = (
        newcomers.whole(compared.split, retail),
        draw_removed_items(len(retail.training.ids), REMOVED, REMOVED_SEED),
    )
    found = {}
    for method, row in zip(asked, rows, strict=True):
        if method.name.startswith((RAW, HEED)):
            ((_, found[method.name]),) = method.rank(every, row.setting)
    return newcomers.lines(compared.split, every, new, found)


def parts(part: str, given: argparse.Namespace) -> tuple[str, Study, Iterator[Method]]:
    if part == "movielens":
        movies = hold_out_last(read_movielens(given.movielens or installed()))
        return "MovieLens-100k, the last rating", study(movies, given.out / part), on_movielens()
    retail = hold_out_last(read_online_retail(given.data / "online_retail"))
    if part == "retail":
        return "Online Retail, the last remaining invoice", study(retail, given.out / part), on_retail()
    title = f"Online Retail, {REMOVED:.0%} of the items removed from training"
    return title, removed_study(retail, given.out / part), on_removed(given.base, retail.training)


def heeds(part: str, given: argparse.Namespace, texts: Sequence[str]) -> Iterator[Method]:
    """Heed's history network trained on the part's own split, on the vectors of the encoder that ships."""
    vectors, schedule = (
        center_vectors(open_text_encoder(load_bundle(given.bundle)).encode_texts(texts)),
        schedule_of(part, given.epochs),
    )
    new, held_back = (draw_removed_items(len(texts), REMOVED, seed) for seed in (REMOVED_SEED, HELD_BACK_SEED))
    mine = Trained(vectors, schedule, new, held_back) if part == "removed" else Trained(vectors, schedule)
    yield trained(f"{HEED}, trained here", mine)
    if part == "retail":
        yield from ablations(vectors, schedule)


def schedule_of(part: str, epochs: int | None) -> HistoryConfig:
    """As the shipped configuration has it, but that newcomers are told nothing where there are none."""
    schedule = read_recommend_config(CONFIGS / "recommend.toml").histories
    schedule = replace(schedule, **ON_MOVIELENS) if part == "movielens" else schedule
    return replace(schedule, find_newcomers=part == "removed", epochs=epochs or schedule.epochs)


def on_retail() -> Iterator[Method]:
    yield from methods.simple()
    yield methods.together()
    yield from methods.matrices()
    yield methods.sasrec((4, 8, 12, 16, 20, 25), n_factors=(128,), n_heads=(2,), dropout_rate=(0.2,), **LEARNING)


def on_movielens() -> Iterator[Method]:
    """Of the simple methods only popularity: nobody rates a film twice.

    RecBole ranks for sequence models among all items, as the columns over all do; those of `new` leave the history out.
    """
    yield next(methods.simple())
    yield methods.together()
    yield from methods.following()
    yield from methods.matrices()
    epochs, shape = (20, 40, 60, 80), {"n_factors": (64,), "n_heads": (2,)}
    yield methods.sasrec(epochs, dropout_rate=(0.2, 0.5), **shape, **LEARNING)
    yield methods.bert4rec(epochs, mask_prob=(0.2,), dropout_rate=(0.2, 0.5), **shape, **LEARNING)


def on_removed(base: str, items: Interactions) -> Iterator[Method]:
    yield methods.chance()
    yield Method("popularity", methods.directly(most_popular), methods.grid(days=(None,)))
    yield from raw_encoder(base, items.texts)


def removed_study(split: Split, folder: Path, share: float = REMOVED) -> Study:
    """Tuned with other items removed, on the inner split."""
    items = len(split.training.ids)
    inner = remove_items(hold_out_last(split.training), draw_removed_items(items, share, HELD_BACK_SEED))
    asked = remove_items(split, draw_removed_items(items, share, REMOVED_SEED))
    return replace(study(asked, folder), inner=inner, chosen_by="hit_rate")


def installed() -> Path:
    (folder,) = methods.PYTHON.parent.parent.glob("lib/python*/site-packages")
    return folder


if __name__ == "__main__":
    main()
