"""Evaluation of a recommender bundle: each user's last basket, ranked among all items by the weights that serve.

Knows nothing of training. `tests.bench` compares other recommenders with it.
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
    """The mean drop of a first-ranked item's score, in log-odds, when an item is deleted from the history.

    `named` deletes the item that `reasons` names first, and `random` a different item of the history. `larger` is the
    share of users for whom the drop by `named` is larger.
    """

    users: int
    named: float
    random: float
    larger: float


@dataclass(frozen=True, slots=True)
class RecommendationReport:
    """The metrics over all targets (`every`), over repeat purchases (`again`) and over items new to the user (`new`).

    The rankings for `new` exclude the items that the user had before. `calibration_error` is the expected calibration
    error of the scores of each user's first ten.
    """

    every: RankingMetrics
    again: RankingMetrics
    new: RankingMetrics
    calibration_error: float
    deletion: DeletionReport


def history_of(
    interactions: InteractionSequence, kind: str, vectors: NDArray[np.float32], trained: NDArray[np.int64]
) -> History:
    """Return the newest MAX_EVENTS interactions of a user as a history.

    `vectors` (items, width) are the item vectors by item number. `trained` (items,) are their training indices, as
    `Recommender.training_indices` returns them.
    """
    items, times = interactions.items[-MAX_EVENTS:], interactions.times[-MAX_EVENTS:]
    types = event_types(kind, interactions.values[-MAX_EVENTS:])
    return History(vectors[items], items, types, ((times[-1] - times) / DAY_S).astype(np.float32), trained[items])


def rank_users(
    recommender: Recommender, vectors: NDArray[np.float32], split: Split, excluded: Sequence[Items] | None = None
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return ranked items (users, DEPTH), best first, and their scores.

    `excluded` are the items not to rank, by user.
    """
    numbers, trained = np.arange(len(vectors)), recommender.cached_training_indices(split.training.ids, vectors)
    rankings = np.full((len(split.users), DEPTH), NO_ITEM, np.int32)
    scores = np.zeros((len(split.users), DEPTH), np.float32)
    with threadpool_limits(1):  # several threads are slower for such small products, and much slower on a busy machine
        for row, interactions in enumerate(split.histories):
            allowed = None if excluded is None else ~np.isin(numbers, excluded[row])
            history = history_of(interactions, split.training.kind, vectors, trained)
            result = recommender.rank(history, vectors, numbers, DEPTH, allowed, trained)
            rankings[row, : len(result.order)], scores[row, : len(result.order)] = result.order, result.scores
    return rankings, scores


def evaluate_recommender(bundle: Bundle, data: Path) -> RecommendationReport:
    """Evaluate a bundle on the last basket of each user of Online Retail, in the folder `data` / online_retail."""
    return measure_recommender(load_recommender(bundle), load_own_catalogue(bundle)[2], load_held_out(data))


def measure_recommender(recommender: Recommender, vectors: NDArray[np.float32], split: Split) -> RecommendationReport:
    items = len(vectors)
    rankings, scores = rank_users(recommender, vectors, split)
    again, new = split.repeat_targets(), split.novel_targets()
    row_by_user = {user: row for row, user in enumerate(split.users)}
    new_rankings, _ = rank_users(recommender, vectors, new, new.owned)
    return RecommendationReport(
        every=measure_rankings(rankings, split.targets, items),
        again=measure_rankings(rankings[[row_by_user[user] for user in again.users]], again.targets, items),
        new=measure_rankings(new_rankings, new.targets, items),
        calibration_error=expected_calibration_error(
            scores[:, :10].ravel(), hit_mask(rankings[:, :10], split.targets).ravel()
        ),
        deletion=measure_deletion(recommender, vectors, split),
    )


def hit_mask(rankings: NDArray[np.integer], targets: Sequence[Items]) -> NDArray[np.bool_]:
    """Return a mask of the ranked items that are targets of the user, (users, k)."""
    return np.stack([np.isin(row, items) for row, items in zip(rankings, targets, strict=True)])


def measure_deletion(recommender: Recommender, vectors: NDArray[np.float32], split: Split) -> DeletionReport:
    """Delete from each history the item with the largest share of the first-ranked item's score, or a random one."""
    rng = np.random.default_rng(0)
    numbers, trained = np.arange(len(vectors)), recommender.cached_training_indices(split.training.ids, vectors)
    drops: list[list[float]] = []
    for interactions in split.histories:
        if len(drops) == DELETED_USERS:
            break
        history = history_of(interactions, split.training.kind, vectors, trained)
        items = np.unique(history.items)
        if len(items) < 3:
            continue
        best = recommender.rank(history, vectors, numbers, 1, training_indices=trained)
        first = best.order[:1]
        named = history.items[np.argmax(best.weights[0])]
        random = rng.choice(items[items != named])
        drops.append([_score_drop(recommender, vectors, trained, history, first, item) for item in (named, random)])
    named_drops, random_drops = np.asarray(drops).T
    return DeletionReport(
        len(drops), float(named_drops.mean()), float(random_drops.mean()), float((named_drops > random_drops).mean())
    )


def _score_drop(
    recommender: Recommender, vectors: NDArray[np.float32], trained: Items, history: History, first: Items, item: int
) -> float:
    """Return the drop of the log-odds of the item `first` without the events of `item`."""
    versions = (history, history.select(history.items != item))
    before, after = (
        recommender.rank(version, vectors[first], first, 1, training_indices=trained[first]).scores[0]
        for version in versions
    )
    return float(logit(before) - logit(after))


VIEWS: tuple[tuple[str, str, Callable[[RecommendationReport], RankingMetrics]], ...] = (
    ("every item taken", "all", lambda report: report.every),
    ("those the user had before", "again", lambda report: report.again),
    ("those new to the user, own items left out", "new", lambda report: report.new),
)


def recommendation_table(report: RecommendationReport) -> str:
    rows = [
        f"| {name} | {metrics.users} | {metrics.hit_rate:.3f} | {metrics.recall:.3f} | {metrics.ndcg:.4f} "
        f"| {metrics.mrr:.3f} | {metrics.coverage:.3f} |"
        for name, _, view in VIEWS
        for metrics in (view(report),)
    ]
    deletion = report.deletion
    return "\n".join(
        [
            "| next basket | users | HR@10 | recall@10 | NDCG@10 | MRR | coverage@10 |",
            "|---|--:|--:|--:|--:|--:|--:|",
            *rows,
            "",
            f"Scores of the first ten: expected calibration error {report.calibration_error:.4f}.",
            "",
            f"Without the history item that `because` names first, the first-ranked item's log odds fall by "
            f"{deletion.named:.3f} on average, without another one at random by {deletion.random:.3f}; the named one "
            f"counts for more with {deletion.larger:.1%} of {deletion.users} users.",
        ]
    )


def metrics_of_recommender(name: str, report: RecommendationReport) -> tuple[Metric, ...]:
    command = COMMAND.format(name=name)
    return tuple(
        Metric(f"{RETAIL}/{view}", "en", metric, round(value, 4), command)
        for _, view, read in VIEWS
        for metric, value in (("hr_at_10", read(report).hit_rate), ("ndcg_at_10", read(report).ndcg))
    )


def write_recommendation(report: RecommendationReport, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "recommend.json").write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    (out / "recommend.md").write_text(recommendation_table(report) + "\n", encoding="utf-8")
