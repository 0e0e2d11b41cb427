"""Which items of a history a recommendation rests on, from the history model of a tiny bundle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import Bundle, load_bundle
from models.evaluation.faithfulness import RANDOM, measure_methods, over_sets
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
        [DISLIKE if place in disliked else place % len(EVENT_TYPES) for place in range(len(items))], np.int64
    )
    ages = np.linspace(90, 0, len(items), dtype=np.float32)
    return History(vectors[np.maximum(numbers, 0)], numbers, kinds, ages)


def without(history: History, item: int) -> History:
    return history.select(history.items != item)


MIXED = [3, 17, 3, 8, 25, 17, 30, 3]


def question(recommender: Recommender, vectors: Vectors, target: int = 17) -> HistoryInstance:
    return make_history_instance(recommender, history_of(vectors, MIXED, disliked=(1, 4)), vectors[target], target)


@pytest.mark.parametrize("disliked", [(), (1, 4), tuple(range(8))])
@pytest.mark.parametrize("target", [3, 17, 20])
def test_occlusion_is_the_score_less_that_of_the_history_without_the_item(
    recommender: Recommender, vectors: Vectors, target: int, disliked: tuple[int, ...]
) -> None:
    history = history_of(vectors, MIXED, disliked)
    asked = make_history_instance(recommender, history, vectors[target], target)
    assert asked.features == ((0, 2, 7), (1, 5), (3,), (4,), (6,))
    one, number = vectors[[target]], np.asarray([target])
    by_hand = [
        asked.full_score - float(recommender.rank(without(history, item), one, number, 1).scores[0])
        for item in (3, 17, 8, 25, 30)
    ]
    np.testing.assert_allclose(attribute_history(asked, "occlusion"), by_hand, atol=1e-6)
    assert max(map(abs, by_hand)) > 1e-4


def test_shapley_values_sum_to_the_score_less_that_of_no_history(recommender: Recommender, vectors: Vectors) -> None:
    asked = question(recommender, vectors)
    none = asked.score(np.zeros((1, 5), np.bool_))[0]
    assert attribute_history(asked, "shapley").sum() == pytest.approx(asked.full_score - none, abs=1e-5)
    assert asked.score(np.ones((1, 5), np.bool_))[0] == pytest.approx(asked.full_score, abs=1e-6)


def test_what_is_scored_without_any_history_is_what_a_taste_of_nothing_gives(
    recommender: Recommender, vectors: Vectors
) -> None:
    none = np.empty(0, np.int64)
    empty = History(vectors[none], none, none, none.astype(np.float32))
    disliked = history_of(vectors, [3], disliked=(0,))
    assert recommender.score([empty], vectors, np.arange(40)).shape == (1, 40)
    alone = make_history_instance(recommender, disliked, vectors[5], 5)
    assert alone.score(np.zeros((1, 1), np.bool_))[0] == pytest.approx(
        float(recommender.score([empty], vectors[[5]], np.asarray([5]))[0, 0])
    )


def test_many_histories_at_once_are_scored_as_each_alone(recommender: Recommender, vectors: Vectors) -> None:
    chance = np.random.default_rng(2)
    numbers, histories = np.arange(40), []
    for events in (9, 4, 1):
        items, kinds = (
            chance.integers(0, 40, events),
            chance.permutation([DISLIKE, 0, 3, DISLIKE, 4, 1, 2, 0, 5])[:events],
        )
        histories.append(
            History(vectors[items], items, kinds, chance.uniform(0, 300, events).astype(np.float32), items)
        )
    for trained in (None, numbers):
        together = recommender.score(histories, vectors, numbers, trained)
        for row, alone in enumerate(histories):
            found = recommender.rank(alone, vectors, numbers, 40, training_indices=trained)
            np.testing.assert_allclose(together[row, found.order], found.scores, atol=1e-6)


def test_attention_is_what_because_names(recommender: Recommender, vectors: Vectors) -> None:
    history = history_of(vectors, MIXED, disliked=(1, 4))
    found = recommender.rank(history, vectors[[17]], np.asarray([17]), 1).weights[0]
    weights = attribute_history(question(recommender, vectors), "attention")
    assert weights.tolist() == pytest.approx([found[[0, 2, 7]].sum(), found[[1, 5]].sum(), *found[[3, 4, 6]]])
    assert weights[3] < 0  # it was disliked


def test_items_that_no_candidate_can_be_are_each_their_own(recommender: Recommender, vectors: Vectors) -> None:
    asked = make_history_instance(recommender, history_of(vectors, [-1, 4, -1, 4]), vectors[4], 4)
    assert asked.features == ((0,), (1, 3), (2,))


@pytest.mark.parametrize("method", HISTORY_METHODS)
def test_long_histories_are_read_in_steps(recommender: Recommender, vectors: Vectors, method: HistoryMethod) -> None:
    sizes: list[int] = []
    history = history_of(vectors, [place % 40 for place in range(256)])

    def scored(histories: Sequence[History]) -> NDArray[np.float32]:
        sizes.append(sum(map(len, histories)))
        return recommender.score(histories, vectors[[2]], np.asarray([2]))[:, 0]

    weights = attribute_history(make_history_instance(recommender, history, vectors[2], 2, scored=scored), method)
    assert weights.shape == (40,)
    assert np.isfinite(weights).all()
    assert max(sizes, default=0) <= STEP_EVENTS


def test_an_empty_history_explains_nothing(recommender: Recommender, vectors: Vectors) -> None:
    with pytest.raises(ValueError, match="empty history"):
        make_history_instance(recommender, history_of(vectors, []), vectors[0], 0)


def test_heaviest_items_are_worth_more_than_random_ones(recommender: Recommender, vectors: Vectors) -> None:
    chance = np.random.default_rng(1)
    asked = [
        make_history_instance(
            recommender, history_of(vectors, chance.integers(0, 40, 12).tolist()), vectors[target], target
        )
        for target in range(20)
    ]
    found = {
        row.method: row
        for row in over_sets(list(measure_methods(attribute_history, HISTORY_METHODS, [("letters", iter(asked))], 20)))
    }
    assert set(found) == {*HISTORY_METHODS, RANDOM}
    assert found["two_sided_occlusion"].comprehensiveness > 1.5 * found[RANDOM].comprehensiveness
    assert found["two_sided_occlusion"].deletion_area < found[RANDOM].deletion_area
