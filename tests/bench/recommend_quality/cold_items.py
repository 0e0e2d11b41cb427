"""The gain and the cost of a minimum number of cold items in the top ten, as with `min_new_items` in a request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from models.data.interactions import Items, Split
from models.evaluation.ranking_metrics import NO_ITEM, drop_items, measure_rankings
from tests.bench.recommend_quality.simple import Rankings

MINIMA = (0, 1, 2, 3, 4, 5)
TOP_K = 10


def promote_cold_items(rankings: Rankings, cold: Items, min_cold: int, top_k: int = TOP_K) -> Rankings:
    """Return the top items (users, top_k). Cold items replace the last ones until there are `min_cold` of them."""
    is_item = rankings != NO_ITEM
    is_new = np.isin(rankings, cold) & is_item
    count = is_new[:, :top_k].sum(axis=1)
    cold_count = np.minimum(np.maximum(count, min_cold), is_new.sum(axis=1))[:, None]
    known = is_item & ~is_new
    chosen = (is_new & (is_new.cumsum(axis=1) <= cold_count)) | (known & (known.cumsum(axis=1) <= top_k - cold_count))
    order = np.argsort(~chosen, axis=1, kind="stable")[:, :top_k]
    return np.where(np.take_along_axis(chosen, order, axis=1), np.take_along_axis(rankings, order, axis=1), NO_ITEM)


def add_cold_targets(removed: Split, held_out: Split) -> Split:
    """Return the split with known and cold targets, after the histories of `removed` without cold items."""
    split = held_out.select_users([user in removed.training.users for user in held_out.users])
    return replace(split, training=removed.training)


def render_lines(removed: Split, all_targets: Split, cold: Items, rankings: Mapping[str, Rankings]) -> Iterator[str]:
    """Yield the table. `rankings` (users, items) by method are for the users of `all_targets`."""
    items = len(all_targets.training.ids)
    has_cold_target = np.isin(all_targets.users, removed.users)
    novel = all_targets.novel_targets()
    has_novel_target = np.isin(all_targets.users, novel.users)
    yield "### A minimum of cold items in the top ten"
    yield ""
    yield "| | minimum | cold items: HR@10 | all: HR@10 | all: NDCG@10 | new to the user: NDCG@10 | cold items in ten |"
    yield f"|---|{'--:|' * 6}"
    for name, method_rankings in rankings.items():
        for min_cold in MINIMA:
            top = promote_cold_items(method_rankings, cold, min_cold)
            novel_top = promote_cold_items(drop_items(method_rankings[has_novel_target], novel.owned), cold, min_cold)
            figures = (
                measure_rankings(top[has_cold_target], removed.targets, items).hit_rate,
                measure_rankings(top, all_targets.targets, items).hit_rate,
                measure_rankings(top, all_targets.targets, items).ndcg,
                measure_rankings(novel_top, novel.targets, items).ndcg,
            )
            share = np.isin(top, cold).sum(axis=1).mean()
            yield f"| {name} | {min_cold} | {' | '.join(f'{value:.4f}' for value in figures)} | {share:.2f} |"
    yield ""
    counts = (len(removed.users), len(all_targets.users), len(novel.users))
    yield "Cold items: {:,} users; all: {:,}; new to the user: {:,}.".format(*counts)
