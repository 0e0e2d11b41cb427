"""Newcomers are told what their like are told, in numpy and in training alike, and as much of it as data bear out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import log_softmax, logit

from models.data.interactions import Interactions, Split, draw_removed_items, hold_out_last, make_sequence, remove_items
from models.prediction.normalize import l2_normalize
from models.ranking.bundle_files import training_index_by_id
from models.ranking.cold_start import (
    NEAREST_ITEMS,
    SHARES,
    ColdStart,
    ColdStartWeights,
    decode_cold_index,
    encode_cold_index,
    find_nearest_items,
    find_nearest_known,
)
from models.ranking.events import History
from models.ranking.item_neighbours import ItemNeighbours
from models.ranking.recommender import SCALE, Recommender
from models.training.cold_start import fit_cold_start, maximum_likelihood_weights
from models.training.history_network import (
    HistoryConfig,
    cold_start_scores,
    make_history_input,
    score_histories,
    train_history_network,
)
from models.training.item_neighbours import NeighbourConfig

ITEMS, WIDTH = 20, 8
WORTH = ColdStartWeights(bias=0.7, neighbours=0.6, taken=1.5)


@pytest.fixture(scope="module")
def texts() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(ITEMS, WIDTH)).astype(np.float32)


@pytest.fixture
def heard(texts: np.ndarray) -> ItemNeighbours:
    chance = np.random.default_rng(1)
    numbers = np.stack([chance.permutation(ITEMS)[:6] for _ in range(ITEMS)]).astype(np.int32)
    kin = find_nearest_items(l2_normalize(texts), np.ones(ITEMS, np.bool_))
    return ItemNeighbours(numbers, chance.normal(size=(ITEMS, 6)).astype(np.float32), 0.5, ColdStart(WORTH, kin))


def test_kin_are_the_nearest_known_and_oneself_first(texts: np.ndarray) -> None:
    known = np.arange(ITEMS) % 3 > 0
    kin = find_nearest_items(l2_normalize(texts), known)
    cosines = l2_normalize(texts) @ l2_normalize(texts).T
    for item in range(ITEMS):
        others = [one for one in np.argsort(-cosines[item]) if known[one] and one != item]
        assert kin[item].tolist() == ([item, *others] if known[item] else others)[: 1 + NEAREST_ITEMS]
    places = np.flatnonzero(known)
    new = np.flatnonzero(~known)
    assert (
        find_nearest_known(l2_normalize(texts)[new], l2_normalize(texts)[places], places).tolist()
        == kin[new, 0].tolist()
    )
    assert find_nearest_items(l2_normalize(texts), np.arange(ITEMS) < 2)[1].tolist() == [1, 0, 0, 0, 0]


def test_numbers_of_newcomers_are_below_all_others() -> None:
    nearest = np.arange(5)
    assert encode_cold_index(nearest).max() < -1
    assert decode_cold_index(encode_cold_index(nearest)).tolist() == nearest.tolist()


def test_a_newcomer_is_told_what_its_kin_are_told_and_whether_they_were_taken(heard: ItemNeighbours) -> None:
    own, liked = np.asarray([3, 5, -1, -7, 6]), np.asarray([True, True, True, True, False])
    said, taken = np.zeros(ITEMS), np.zeros(ITEMS)
    for item, fade in ((3, 0.125), (5, 0.25)):
        said[heard.numbers[item]] += heard.weights[item] * fade
        taken[item] = fade
    assert heard.cold_start is not None
    expected = [
        WORTH.bias
        + ((WORTH.neighbours * said + WORTH.taken * taken)[heard.cold_start.nearest_items[nearest]] * SHARES).sum()
        for nearest in range(ITEMS)
    ]
    found = heard.scores(own, liked)
    np.testing.assert_allclose(found[encode_cold_index(np.arange(ITEMS))], expected, atol=1e-5)
    assert found[-1] == 0
    plain = replace(heard, cold_start=None).scores(np.maximum(own, -1), liked)
    np.testing.assert_array_equal(found[:ITEMS], plain[:ITEMS])
    assert len(plain) == ITEMS + 1


def test_parts_of_events_add_up_to_what_a_newcomer_is_told_beside_what_it_always_is(heard: ItemNeighbours) -> None:
    own, candidates = np.asarray([3, 5, 3, -9, 6]), np.append(encode_cold_index(np.arange(ITEMS)), np.arange(-1, ITEMS))
    liked = np.asarray([True, True, True, True, False])
    parts = heard.contributions(own, liked, candidates)
    expected = heard.scores(own, liked)[candidates]
    expected[:ITEMS] -= WORTH.bias
    np.testing.assert_allclose(parts.sum(axis=1), expected, atol=1e-5)
    assert np.abs(parts[:ITEMS]).max() > 0.1
    assert not parts[:, 3:].any()


SCHEDULE = HistoryConfig(
    seed=0, epochs=4, batch_examples=16, events=16, rate=3e-3, weight_decay=0.01, dropout=0.0, id_dropout=0.3,
    halves=0.0, often=1.0, neighbours=NeighbourConfig(weight=2.0, ridge=5.0, kept=8), steps_of_user=10, inner=16,
    eye=8, find_newcomers=True,
)  # fmt: skip
HELD_BACK = draw_removed_items(60, 0.1, seed=1)


@pytest.fixture(scope="module")
def shop() -> tuple[Interactions, np.ndarray]:
    """Items of four kinds, 0 to 3 by their texts too; users stay with one kind, three items a day."""
    items, chance = 60, np.random.default_rng(0)
    kinds = np.arange(items) % 4
    vectors = np.eye(4, WIDTH)[kinds] + chance.normal(0, 0.2, (items, WIDTH))
    users = {
        f"u{user}": make_sequence(
            (86400.0 * day, dict.fromkeys(chance.choice(np.flatnonzero(kinds == user % 4), 3, False).tolist(), np.nan))
            for day in range(5)
        )
        for user in range(120)
    }
    names = tuple(str(item) for item in range(items))
    return Interactions("purchase", names, names, users), (vectors - vectors.mean(axis=0)).astype(np.float32)


@pytest.fixture(scope="module")
def asked(shop: tuple[Interactions, np.ndarray]) -> Split:
    """With other items removed than those that are held back."""
    return remove_items(hold_out_last(shop[0]), draw_removed_items(60, 0.2, seed=9))


@pytest.fixture(scope="module")
def found(asked: Split, shop: tuple[Interactions, np.ndarray]) -> HistoryConfig:
    return fit_cold_start(asked.training, shop[1], SCHEDULE, HELD_BACK, lambda line: None)


def test_newcomers_get_their_share_of_what_is_taken_next(
    asked: Split, found: HistoryConfig, shop: tuple[Interactions, np.ndarray]
) -> None:
    interactions, vectors = shop
    whole = replace(hold_out_last(interactions), training=asked.training)
    network = train_history_network(asked.training, vectors, found, lambda line: None)
    before, new = score_histories(network, vectors, whole, found), np.flatnonzero(network.known.numpy() == 0)
    assert len(new) == 12
    scores = before.copy()
    scores[:, new] += cold_start_scores(network, whole, new)
    share = np.mean([np.isin(target, new).mean() for target in whole.targets])
    given, was = (np.exp(log_softmax(one, axis=1))[:, new].sum(axis=1).mean() for one in (scores, before))
    assert abs(given - share) < 0.05
    assert share - was > 0.15


def test_nothing_is_found_that_is_not_wanted_or_cannot_be(shop: tuple[Interactions, np.ndarray]) -> None:
    for change in ({"find_newcomers": False}, {"use_ids": False}, {"use_text": False}):
        schedule = replace(SCHEDULE, **change)  # type: ignore[arg-type]
        assert fit_cold_start(*shop, schedule, HELD_BACK, lambda line: None) is schedule


def test_the_likeliest_worth_is_a_maximum() -> None:
    chance = np.random.default_rng(2)
    scores, said, taken = (chance.normal(size=shape).astype(np.float32) for shape in ((300, 9), (300, 3), (300, 3)))
    new, users = np.asarray([1, 4, 8]), tuple(str(user) for user in range(300))
    true = scores.copy()
    true[:, new] += 0.8 + 0.5 * said - 0.4 * taken
    chances = np.exp(log_softmax(true.astype(float), axis=1))
    targets = tuple(np.asarray([chance.choice(9, p=row / row.sum())]) for row in chances)
    split = Split(Interactions("purchase", (), (), {}), users, targets)

    def likelihood(worth: ColdStartWeights) -> float:
        given = scores.copy()
        given[:, new] += worth.bias + worth.neighbours * said + worth.taken * taken
        return float(log_softmax(given, axis=1)[np.arange(300), np.concatenate(targets)].mean())

    best = maximum_likelihood_weights(scores, new, said, taken, split)
    for name in ("bias", "neighbours", "taken"):
        for step in (-0.1, 0.1):
            assert likelihood(best) > likelihood(replace(best, **{name: getattr(best, name) + step}))
    assert best.bias == pytest.approx(0.8, abs=0.35)


def test_what_serves_tells_newcomers_what_training_found(
    asked: Split, found: HistoryConfig, shop: tuple[Interactions, np.ndarray]
) -> None:
    vectors = shop[1]
    network = train_history_network(asked.training, vectors, found, lambda line: None)
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    weights["ids.weight"] = weights["ids.weight"] * weights["known"][:, None]
    weights |= {"centre": np.zeros(WIDTH, np.float32), "calibration": np.asarray([1.0, 0.0], np.float32)}
    names = list(shop[0].ids)
    unknown = np.flatnonzero(weights["known"] == 0)
    ids = training_index_by_id(names, weights["known"])
    for number in unknown[1:]:  # they came later; the first one was there
        del ids[names[number]]
    placed = Recommender(weights, "shop", ids).item_vectors(vectors, names)
    recommender = Recommender(weights, "shop", ids, placed)
    numbers = recommender.cached_training_indices(names, placed)
    assert (numbers[unknown[1:]] < -1).all()
    assert numbers[unknown[0]] == -1
    assert np.flatnonzero(recommender.is_cold(numbers)).tolist() == unknown[1:].tolist()
    assert np.flatnonzero(Recommender(weights, "shop", ids).is_cold(numbers)).tolist() == unknown.tolist()
    assert recommender.training_indices(["", None], placed[:2])[0] == -1
    assert recommender.training_indices([None], placed[[5]])[0] in (
        5,
        encode_cold_index(weights["kin"][[5], 0].astype(np.int64))[0],
    )
    known = int(np.flatnonzero(weights["known"])[0])
    changed = placed.copy()
    changed[unknown[2]] = placed[0] + 0.01
    more = np.concatenate([changed, placed[[1]]])
    found_again = recommender.cached_training_indices([*names, "later"], more)
    assert found_again.tolist() == recommender.training_indices([*names, "later"], more).tolist()
    assert found_again[unknown[2]] != numbers[unknown[2]]
    assert recommender.cached_training_indices(names, placed).tolist() == numbers.tolist()
    renamed = ["another" if place == known else name for place, name in enumerate(names)]
    assert (
        recommender.cached_training_indices(renamed, placed).tolist()
        == recommender.training_indices(renamed, placed).tolist()
    )
    expected = score_histories(network, vectors, asked, found)
    expected[:, unknown[1:]] += cold_start_scores(network, asked, unknown[1:])
    for row, trail in enumerate(asked.histories[:5]):
        past = make_history_input(trail, "purchase", 16)
        days = ((trail.times[-1] - trail.times) / 86400).astype(np.float32)
        history = History(placed[past.items], past.items, past.event_types, days, numbers[past.items])
        best = recommender.rank(history, placed, None, 60, trained=numbers)
        np.testing.assert_allclose(logit(best.scores.astype(float)), expected[row][best.order], atol=2e-2)
        scored = recommender.score([history], placed, np.arange(60), numbers)[0]
        np.testing.assert_allclose(scored[best.order], best.scores, atol=1e-5)
        new = next(item for item in best.order if numbers[item] < -1)
        with_it = History(
            placed[[*past.items, new]],
            np.append(past.items, new),
            np.append(past.event_types, past.event_types[0]),
            np.append(days, np.float32(0)),
            np.append(numbers[past.items], numbers[new]),
        )
        plain = replace(with_it, training_indices=None)
        for items in (None, np.arange(60)):
            own, alone = (recommender.rank(one, placed, items, 60, trained=numbers) for one in (with_it, plain))
            had = [one.scores[one.order == new] for one in (own, alone)]
            assert had[0] == had[1], "what the user has is no newcomer"
    assert np.abs(np.linalg.norm(placed[numbers < -1], axis=1) - SCALE).max() < 1e-4
