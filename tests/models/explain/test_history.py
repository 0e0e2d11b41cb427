"""Attributions of recommendations, from the history model of a tiny bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import Bundle, load_bundle
from models.evaluation.faithfulness import RANDOM, average_faithfulness, measure_methods
from models.explain.attribution import METHODS, ScoreMethod
from models.explain.history import (
    HISTORY_METHODS,
    STEP_EVENTS,
    HistoryInstance,
    attribute_history,
    make_history_instance,
)
from models.explain.methods import HistoryMethod
from models.ranking.bundle_files import load_own_catalogue, load_recommender
from models.ranking.events import DISLIKE, EVENT_TYPES, History
from models.ranking.recommender import Recommender
from tests.support.tiny_bundle import tiny_recommend_bundle

Vectors = NDArray[np.float32]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_recommend_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture(scope="module")
def recommender(bundle: Bundle) -> Recommender:
    return load_recommender(bundle)


@pytest.fixture(scope="module")
def vectors(bundle: Bundle) -> Vectors:
    return load_own_catalogue(bundle)[2]


def history_of(vectors: Vectors, items: list[int], disliked: tuple[int, ...] = ()) -> History:
    numbers = np.asarray(items, np.int64)
    kinds = np.asarray(
        [DISLIKE if index in disliked else index % len(EVENT_TYPES) for index in range(len(items))], np.int64
    )
    ages = np.linspace(90, 0, len(items), dtype=np.float32)
    return History(vectors[np.maximum(numbers, 0)], numbers, kinds, ages)


def remove_item(history: History, item: int) -> History:
    return history.select(history.items != item)


MIXED = [3, 17, 3, 8, 25, 17, 30, 3]


def mixed_instance(recommender: Recommender, vectors: Vectors, target: int = 17) -> HistoryInstance:
    return make_history_instance(recommender, history_of(vectors, MIXED, disliked=(1, 4)), vectors[target], target)


@pytest.mark.parametrize("disliked", [(), (1, 4), tuple(range(8))])
@pytest.mark.parametrize("target", [3, 17, 20])
def test_occlusion_equals_the_loss_of_score_without_the_item(
    recommender: Recommender, vectors: Vectors, target: int, disliked: tuple[int, ...]
) -> None:
    history = history_of(vectors, MIXED, disliked)
    instance = make_history_instance(recommender, history, vectors[target], target)
    assert instance.features == ((0, 2, 7), (1, 5), (3,), (4,), (6,))
    vector, number = vectors[[target]], np.asarray([target])
    by_hand = [
        instance.full_score - float(recommender.rank(remove_item(history, item), vector, number, 1).scores[0])
        for item in (3, 17, 8, 25, 30)
    ]
    np.testing.assert_allclose(attribute_history(instance, "occlusion"), by_hand, atol=1e-6)
    assert max(map(abs, by_hand)) > 1e-4


def test_shapley_values_sum_to_the_score_less_that_of_no_history(recommender: Recommender, vectors: Vectors) -> None:
    instance = mixed_instance(recommender, vectors)
    none = instance.score(np.zeros((1, 5), np.bool_))[0]
    assert attribute_history(instance, "shapley").sum() == pytest.approx(instance.full_score - none, abs=1e-5)
    assert instance.score(np.ones((1, 5), np.bool_))[0] == pytest.approx(instance.full_score, abs=1e-6)


def test_an_empty_variant_scores_like_an_empty_history(recommender: Recommender, vectors: Vectors) -> None:
    none = np.empty(0, np.int64)
    empty = History(vectors[none], none, none, none.astype(np.float32))
    disliked = history_of(vectors, [3], disliked=(0,))
    assert recommender.score([empty], vectors, np.arange(40)).shape == (1, 40)
    alone = make_history_instance(recommender, disliked, vectors[5], 5)
    assert alone.score(np.zeros((1, 1), np.bool_))[0] == pytest.approx(
        float(recommender.score([empty], vectors[[5]], np.asarray([5]))[0, 0])
    )


def test_histories_score_alike_together_and_alone(recommender: Recommender, vectors: Vectors) -> None:
    rng = np.random.default_rng(2)
    numbers, histories = np.arange(40), []
    for events in (9, 4, 1):
        items, kinds = (
            rng.integers(0, 40, events),
            rng.permutation([DISLIKE, 0, 3, DISLIKE, 4, 1, 2, 0, 5])[:events],
        )
        histories.append(History(vectors[items], items, kinds, rng.uniform(0, 300, events).astype(np.float32), items))
    for trained in (None, numbers):
        together = recommender.score(histories, vectors, numbers, trained)
        for row, alone in enumerate(histories):
            ranked = recommender.rank(alone, vectors, numbers, 40, training_indices=trained)
            np.testing.assert_allclose(together[row, ranked.order], ranked.scores, atol=1e-6)


def test_attention_sums_the_weights_behind_reasons(recommender: Recommender, vectors: Vectors) -> None:
    history = history_of(vectors, MIXED, disliked=(1, 4))
    shares = recommender.rank(history, vectors[[17]], np.asarray([17]), 1).weights[0]
    weights = attribute_history(mixed_instance(recommender, vectors), "attention")
    assert weights.tolist() == pytest.approx([shares[[0, 2, 7]].sum(), shares[[1, 5]].sum(), *shares[[3, 4, 6]]])
    assert weights[3] < 0  # the user disliked it


def test_a_score_method_in_the_table_explains_histories(
    recommender: Recommender, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = cast(HistoryMethod, "toy")
    monkeypatch.setitem(METHODS, toy, ScoreMethod(lambda score, features: np.arange(float(features)), "its position"))
    weights = attribute_history(mixed_instance(recommender, vectors), toy)
    assert weights.tolist() == [0, 1, 2, 3, 4]


def test_a_method_for_texts_is_refused(recommender: Recommender, vectors: Vectors) -> None:
    with pytest.raises(ValueError, match="does not support histories"):
        attribute_history(mixed_instance(recommender, vectors), "rollout")  # type: ignore[arg-type]


def test_each_unknown_item_is_a_feature_of_its_own(recommender: Recommender, vectors: Vectors) -> None:
    instance = make_history_instance(recommender, history_of(vectors, [-1, 4, -1, 4]), vectors[4], 4)
    assert instance.features == ((0,), (1, 3), (2,))


@pytest.mark.slow
@pytest.mark.parametrize("method", HISTORY_METHODS)
def test_long_histories_are_read_in_steps(recommender: Recommender, vectors: Vectors, method: HistoryMethod) -> None:
    sizes: list[int] = []
    history = history_of(vectors, [index % 40 for index in range(256)])

    def score_histories(histories: Sequence[History]) -> NDArray[np.float32]:
        sizes.append(sum(map(len, histories)))
        return recommender.score(histories, vectors[[2]], np.asarray([2]))[:, 0]

    instance = make_history_instance(recommender, history, vectors[2], 2, score_histories=score_histories)
    weights = attribute_history(instance, method)
    assert weights.shape == (40,)
    assert np.isfinite(weights).all()
    assert max(sizes, default=0) <= STEP_EVENTS


def test_an_empty_history_is_refused(recommender: Recommender, vectors: Vectors) -> None:
    with pytest.raises(ValueError, match="empty history"):
        make_history_instance(recommender, history_of(vectors, []), vectors[0], 0)


@pytest.mark.slow
def test_two_sided_occlusion_is_more_faithful_than_a_random_order(recommender: Recommender, vectors: Vectors) -> None:
    rng = np.random.default_rng(1)
    instances = [
        make_history_instance(
            recommender, history_of(vectors, rng.integers(0, 40, 12).tolist()), vectors[target], target
        )
        for target in range(20)
    ]
    reports = measure_methods(attribute_history, HISTORY_METHODS, [("letters", iter(instances))], 20)
    means = {report.method: report for report in average_faithfulness(list(reports))}
    assert set(means) == {*HISTORY_METHODS, RANDOM}
    assert means["two_sided_occlusion"].comprehensiveness > 1.5 * means[RANDOM].comprehensiveness
    assert means["two_sided_occlusion"].deletion_area < means[RANDOM].deletion_area
