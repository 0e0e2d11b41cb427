"""The comparison of Heed's recommender with popularity, neighbours, factors and other sequence models, on equal splits.

Run with `make bench-recommend-quality DATA=folder BASE=encoder`. Every method is tuned on the inner split: the
last-but-one basket of each user. An interrupted run continues; use another `--out` to start again.
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
from models.recommender_training.history_network import HistoryConfig
from models.recommender_training.item_neighbours import NeighbourConfig
from models.recommender_training.recommendation import center_vectors, read_recommend_config
from models.runtime.offline import open_text_encoder
from models.training.classification import CONFIGS
from tests.bench.recommend_quality import cold_items, methods, report
from tests.bench.recommend_quality.heed import HEED, TrainedHeed, ablations, heed_method, measure_shipped
from tests.bench.recommend_quality.methods import Method
from tests.bench.recommend_quality.raw import RAW, raw_encoder
from tests.bench.recommend_quality.simple import most_popular
from tests.bench.recommend_quality.study import Row, Study, study

REMOVED, REMOVED_SEED = 0.1, 7
"""As in `models/configs/recommend.toml`. The shipped encoder has seen no co-occurrence of these items."""
HELD_BACK_SEED = 1
"""The seed of other items, which tune the methods and fit the weights of cold items."""
TRAINING_SETTINGS: dict[str, Sequence[object]] = {"session_max_len": (100,), "batch_size": (32,)}
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
"""Changes of Heed's configuration for films. The neighbours are tuned alone on the last but one rating. Heed chooses
their weight beside attention there, too."""

PARTS = ("retail", "movielens", "removed")


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-recommend-quality", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the recommend data sets")
    parser.add_argument("--base", help="the encoder before training on these sets, for items by their texts alone")
    parser.add_argument("--movielens", type=Path, help="RecBole's wheel or its folder")
    parser.add_argument("--bundle", type=Path, help="Heed's bundle, for its rows: as shipped and retrained")
    parser.add_argument("--epochs", type=int, help="epochs of all trainings of Heed, for a quicker run")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/recommend-quality"),
        help="folder of the results; an interrupted run continues from it",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--methods", nargs="+", default=("",), help="only methods whose name begins with any of these")
    options = parser.parse_args()
    tables: dict[str, Sequence[Row]] = {}
    for part in options.parts:
        title, compared, peers = make_study(part, options)
        rows = (
            [measure_shipped(load_bundle(options.bundle), compared.split)]
            if options.bundle and part == "retail"
            else []
        )
        heed_rows = heed_methods(part, options, compared.split.training.texts) if options.bundle else iter(())
        measured = []
        for method in chain(peers, heed_rows):
            if method.name.casefold().startswith(tuple(name.casefold() for name in options.methods)):
                rows.append(compared.row(method))
                measured.append(method)
                tables[title] = rows
                report.write(options.out, tables)
                print(f"{part}: {method.name}: {rows[-1].views.overall}", flush=True)
        if part == "removed" and measured:
            table = "\n".join(cold_item_lines(options.data, compared, measured, rows))
            (options.out / "cold_items.md").write_text(table + "\n")
            print(table)
    print(report.write(options.out, tables))


def cold_item_lines(data: Path, compared: Study, measured: Sequence[Method], rows: Sequence[Row]) -> Iterator[str]:
    """Yield the table of cold items for the methods that use texts, each with its best setting."""
    retail = hold_out_last(read_online_retail(data / "online_retail"))
    split, cold = (
        cold_items.add_cold_targets(compared.split, retail),
        draw_removed_items(len(retail.training.ids), REMOVED, REMOVED_SEED),
    )
    rankings = {}
    for method, row in zip(measured, rows, strict=True):
        if method.name.startswith((RAW, HEED)):
            ((_, rankings[method.name]),) = method.rank(split, row.setting)
    return cold_items.render_lines(compared.split, split, cold, rankings)


def make_study(part: str, options: argparse.Namespace) -> tuple[str, Study, Iterator[Method]]:
    if part == "movielens":
        movies = hold_out_last(read_movielens(options.movielens or installed()))
        return "MovieLens-100k, the last rating", study(movies, options.out / part), on_movielens()
    retail = hold_out_last(read_online_retail(options.data / "online_retail"))
    if part == "retail":
        return "Online Retail, the last remaining invoice", study(retail, options.out / part), on_retail()
    title = f"Online Retail, {REMOVED:.0%} of the items removed from training"
    return title, removed_study(retail, options.out / part), on_removed(options.base, retail.training)


def heed_methods(part: str, options: argparse.Namespace, texts: Sequence[str]) -> Iterator[Method]:
    """Yield Heed's history network, trained on the split of the part with the vectors of the shipped encoder."""
    vectors, config = (
        center_vectors(open_text_encoder(load_bundle(options.bundle)).encode_texts(texts)),
        config_of(part, options.epochs),
    )
    cold, held_back = (draw_removed_items(len(texts), REMOVED, seed) for seed in (REMOVED_SEED, HELD_BACK_SEED))
    heed = TrainedHeed(vectors, config, cold, held_back) if part == "removed" else TrainedHeed(vectors, config)
    yield heed_method(f"{HEED}, trained here", heed)
    if part == "retail":
        yield from ablations(vectors, config)


def config_of(part: str, epochs: int | None) -> HistoryConfig:
    """Return the shipped configuration for a part. The weights of cold items are fitted only if there are any."""
    config = read_recommend_config(CONFIGS / "recommend.toml").histories
    config = replace(config, **ON_MOVIELENS) if part == "movielens" else config
    return replace(config, find_newcomers=part == "removed", epochs=epochs or config.epochs)


def on_retail() -> Iterator[Method]:
    yield from methods.simple()
    yield methods.ease()
    yield from methods.matrices()
    yield methods.sasrec(
        (4, 8, 12, 16, 20, 25), n_factors=(128,), n_heads=(2,), dropout_rate=(0.2,), **TRAINING_SETTINGS
    )


def on_movielens() -> Iterator[Method]:
    """Yield the methods. Of the simple ones, only popularity is useful, because nobody rates a film twice.

    The columns over all targets rank all items, as RecBole does. Those of `new` leave out the history.
    """
    yield next(methods.simple())
    yield methods.ease()
    yield from methods.slit_and_slist()
    yield from methods.matrices()
    epochs, shape = (20, 40, 60, 80), {"n_factors": (64,), "n_heads": (2,)}
    yield methods.sasrec(epochs, dropout_rate=(0.2, 0.5), **shape, **TRAINING_SETTINGS)
    yield methods.bert4rec(epochs, mask_prob=(0.2,), dropout_rate=(0.2, 0.5), **shape, **TRAINING_SETTINGS)


def on_removed(base: str, items: Interactions) -> Iterator[Method]:
    yield methods.random_method()
    yield Method("popularity", methods.as_rank(most_popular), methods.grid(days=(None,)))
    yield from raw_encoder(base, items.texts)


def removed_study(split: Split, folder: Path, share: float = REMOVED) -> Study:
    """Return a study whose inner split has other items removed."""
    items = len(split.training.ids)
    inner = remove_items(hold_out_last(split.training), draw_removed_items(items, share, HELD_BACK_SEED))
    outer = remove_items(split, draw_removed_items(items, share, REMOVED_SEED))
    return replace(study(outer, folder), inner=inner, chosen_by="hit_rate")


def installed() -> Path:
    (folder,) = methods.PYTHON.parent.parent.glob("lib/python*/site-packages")
    return folder


if __name__ == "__main__":
    main()
