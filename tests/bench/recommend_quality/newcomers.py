"""What it gains and costs to ask for at least so many newcomers among the first ten, as a request can."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from models.data.interactions import Items, Split
from models.evaluation.ranking_metrics import NO_ITEM, drop_items, measure_rankings
from tests.bench.recommend_quality.simple import Rankings

AT_LEAST = (0, 1, 2, 3, 4, 5)
TOP_K = 10


def newcomers_first(rankings: Rankings, new: Items, wanted: int, top_k: int = TOP_K) -> Rankings:
    """The first `top_k` (users, top_k): the best of `new` take the last places if fewer than `wanted` are there."""
    there = rankings != NO_ITEM
    is_new = np.isin(rankings, new) & there
    among = is_new[:, :top_k].sum(axis=1)
    taken = np.minimum(np.maximum(among, wanted), is_new.sum(axis=1))[:, None]
    known = there & ~is_new
    chosen = (is_new & (is_new.cumsum(axis=1) <= taken)) | (known & (known.cumsum(axis=1) <= top_k - taken))
    order = np.argsort(~chosen, axis=1, kind="stable")[:, :top_k]
    return np.where(np.take_along_axis(chosen, order, axis=1), np.take_along_axis(rankings, order, axis=1), NO_ITEM)


def whole(removed: Split, held_out: Split) -> Split:
    """All that users took next, newcomers and others, after the histories of `removed`, which have no newcomers."""
    asked = held_out.select_users([user in removed.training.users for user in held_out.users])
    return replace(asked, training=removed.training)


def lines(removed: Split, every: Split, new: Items, rankings: Mapping[str, Rankings]) -> Iterator[str]:
    """`rankings` (users, items) of each method for the users of `every`."""
    items = len(every.training.ids)
    among = np.isin(every.users, removed.users)
    others = every.novel_targets()
    unowned = np.isin(every.users, others.users)
    yield "### At least so many newcomers among the first ten"
    yield ""
    yield "| | at least | newcomers: HR@10 | all: HR@10 | all: NDCG@10 | new to the user: NDCG@10 | newcomers in ten |"
    yield f"|---|{'--:|' * 6}"
    for name, found in rankings.items():
        for wanted in AT_LEAST:
            first = newcomers_first(found, new, wanted)
            left = newcomers_first(drop_items(found[unowned], others.owned), new, wanted)
            figures = (
                measure_rankings(first[among], removed.targets, items).hit_rate,
                measure_rankings(first, every.targets, items).hit_rate,
                measure_rankings(first, every.targets, items).ndcg,
                measure_rankings(left, others.targets, items).ndcg,
            )
            share = np.isin(first, new).sum(axis=1).mean()
            yield f"| {name} | {wanted} | {' | '.join(f'{one:.4f}' for one in figures)} | {share:.2f} |"
    yield ""
    yield f"Newcomers: {len(removed.users):,} users; all: {len(every.users):,}; new to the user: {len(others.users):,}."
