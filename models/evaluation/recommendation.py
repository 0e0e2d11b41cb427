"""Measuring a recommender bundle: what users took last, ranked among all items, from the weights that serve.

Knows nothing of training; `tests.bench` sets other recommenders beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
from threadpoolctl import threadpool_limits

from models.bundle import Bundle, Metric
from models.data.interactions import DAY_S, RETAIL, InteractionSequence, Items, Split, load_held_out
from models.evaluation.ranking_metrics import NO_ITEM, RankingMetrics, measure_rankings
from models.prediction.calibration_fit import expected_calibration_error
from models.ranking.bundle_files import load_own_catalogue, load_recommender
from models.ranking.events import MAX_EVENTS, History, event_types
from models.ranking.recommender import Recommender

COMMAND = "heed evaluate recommend --data DATA --bundle models/bundles/{name}"
DEPTH = 100
DELETED_USERS = 400


@dataclass(frozen=True, slots=True)
class DeletionReport:
    """How far a first-ranked item's score (log odds) falls without a history item, on average over `users`.

    `named` is the item that `because` names first, `random` another of the history; `larger` is the share of users for
    whom the named one counts for more.
    """

    users: int
    named: float
    random: float
    larger: float


@dataclass(frozen=True, slots=True)
class RecommendationReport:
    """`every` over all targets, `again` over those that a user had before, `new` over the others, own items left out.

    `calibration_error` is the expected calibration error of the scores of each user's first ten.
    """

    every: RankingMetrics
    again: RankingMetrics
    new: RankingMetrics
    calibration_error: float
    deletion: DeletionReport


def history_of(
    trail: InteractionSequence, kind: str, vectors: NDArray[np.float32], trained: NDArray[np.int64]
) -> History:
    """The newest events that are read of a trail; `vectors` (items, width) are the item vectors of its numbers, and
    `trained` (items,) is as `Recommender.numbers` gives it for them."""
    items, times = trail.items[-MAX_EVENTS:], trail.times[-MAX_EVENTS:]
    kinds = event_types(kind, trail.values[-MAX_EVENTS:])
    return History(vectors[items], items, kinds, ((times[-1] - times) / DAY_S).astype(np.float32), trained[items])


def rank_users(
    recommender: Recommender, vectors: NDArray[np.float32], split: Split, left_out: Sequence[Items] | None = None
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Items (users, DEPTH), best first, and their scores; `left_out` are each user's items not to be ranked."""
    numbers, trained = np.arange(len(vectors)), recommender.cached_training_indices(split.training.ids, vectors)
    rankings = np.full((len(split.users), DEPTH), NO_ITEM, np.int32)
    scores = np.zeros((len(split.users), DEPTH), np.float32)
    with threadpool_limits(1):  # products so small are slower on several threads, by far where others work too
        for row, trail in enumerate(split.histories):
            allowed = None if left_out is None else ~np.isin(numbers, left_out[row])
            history = history_of(trail, split.training.kind, vectors, trained)
            found = recommender.rank(history, vectors, numbers, DEPTH, allowed, trained)
            rankings[row, : len(found.order)], scores[row, : len(found.order)] = found.order, found.scores
    return rankings, scores


def evaluate_recommender(bundle: Bundle, data: Path) -> RecommendationReport:
    """On each user's last basket of Online Retail, in the folder `data` / online_retail."""
    return measure_recommender(load_recommender(bundle), load_own_catalogue(bundle)[2], load_held_out(data))


def measure_recommender(recommender: Recommender, vectors: NDArray[np.float32], split: Split) -> RecommendationReport:
    items = len(vectors)
    rankings, scores = rank_users(recommender, vectors, split)
    again, new = split.repeat_targets(), split.novel_targets()
    asked = {user: row for row, user in enumerate(split.users)}
    others, _ = rank_users(recommender, vectors, new, new.owned)
    return RecommendationReport(
        every=measure_rankings(rankings, split.targets, items),
        again=measure_rankings(rankings[[asked[user] for user in again.users]], again.targets, items),
        new=measure_rankings(others, new.targets, items),
        calibration_error=expected_calibration_error(
            scores[:, :10].ravel(), taken_in(rankings[:, :10], split.targets).ravel()
        ),
        deletion=deletion(recommender, vectors, split),
    )


def taken_in(rankings: NDArray[np.integer], targets: Sequence[Items]) -> NDArray[np.bool_]:
    """(users, k): which of the items that are ranked first each user took."""
    return np.stack([np.isin(row, own) for row, own in zip(rankings, targets, strict=True)])


def deletion(recommender: Recommender, vectors: NDArray[np.float32], split: Split) -> DeletionReport:
    """Takes out of each history the item that the first-ranked one leans on most, and one at random instead."""
    chance = np.random.default_rng(0)
    numbers, trained = np.arange(len(vectors)), recommender.cached_training_indices(split.training.ids, vectors)
    falls: list[list[float]] = []
    for trail in split.histories:
        if len(falls) == DELETED_USERS:
            break
        history = history_of(trail, split.training.kind, vectors, trained)
        own = np.unique(history.items)
        if len(own) < 3:
            continue
        best = recommender.rank(history, vectors, numbers, 1, training_indices=trained)
        first = best.order[:1]
        named = history.items[np.argmax(best.weights[0])]
        other = chance.choice(own[own != named])
        falls.append([_fall(recommender, vectors, trained, history, first, item) for item in (named, other)])
    named_falls, random_falls = np.asarray(falls).T
    return DeletionReport(
        len(falls), float(named_falls.mean()), float(random_falls.mean()), float((named_falls > random_falls).mean())
    )


def _fall(
    recommender: Recommender, vectors: NDArray[np.float32], trained: Items, history: History, first: Items, item: int
) -> float:
    """Of the log odds of the item `first` when all events of `item` are gone."""
    kept = history.items != item
    both = (history, history.select(kept))
    before, after = (
        recommender.rank(one, vectors[first], first, 1, training_indices=trained[first]).scores[0] for one in both
    )
    return float(logit(before) - logit(after))


VIEWS: tuple[tuple[str, str, Callable[[RecommendationReport], RankingMetrics]], ...] = (
    ("every item taken", "all", lambda found: found.every),
    ("those the user had before", "again", lambda found: found.again),
    ("those new to the user, own items left out", "new", lambda found: found.new),
)


def recommend_table(found: RecommendationReport) -> str:
    rows = [
        f"| {name} | {one.users} | {one.hit_rate:.3f} | {one.recall:.3f} | {one.ndcg:.4f} | {one.mrr:.3f} "
        f"| {one.coverage:.3f} |"
        for name, _, view in VIEWS
        for one in (view(found),)
    ]
    gone = found.deletion
    return "\n".join(
        [
            "| next basket | users | HR@10 | recall@10 | NDCG@10 | MRR | coverage@10 |",
            "|---|--:|--:|--:|--:|--:|--:|",
            *rows,
            "",
            f"Scores of the first ten: expected calibration error {found.calibration_error:.4f}.",
            "",
            f"Without the history item that `because` names first, the first-ranked item's log odds fall by "
            f"{gone.named:.3f} on average, without another one at random by {gone.random:.3f}; the named one counts "
            f"for more with {gone.larger:.1%} of {gone.users} users.",
        ]
    )


def metrics_of_recommender(name: str, found: RecommendationReport) -> tuple[Metric, ...]:
    command = COMMAND.format(name=name)
    return tuple(
        Metric(f"{RETAIL}/{view}", "en", metric, round(value, 4), command)
        for _, view, read in VIEWS
        for metric, value in (("hr_at_10", read(found).hit_rate), ("ndcg_at_10", read(found).ndcg))
    )


def write_recommender(found: RecommendationReport, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "recommend.json").write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    (out / "recommend.md").write_text(recommend_table(found) + "\n", encoding="utf-8")
