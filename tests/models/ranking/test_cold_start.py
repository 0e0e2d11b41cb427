"""Cold items: they get a fitted share of the scores of their nearest items, in NumPy and in training alike."""

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
    NEAREST_WEIGHTS,
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
from models.recommender_training.cold_start import fit_cold_start, maximum_likelihood_weights
from models.recommender_training.history_network import (
    HistoryConfig,
    cold_start_scores,
    make_history_input,
    score_histories,
    train_history_network,
)
from models.recommender_training.item_neighbours import NeighbourConfig

pytestmark = pytest.mark.slow

ITEMS, WIDTH = 20, 8
WEIGHTS = ColdStartWeights(bias=0.7, neighbours=0.6, taken=1.5)


@pytest.fixture(scope="module")
def texts() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(ITEMS, WIDTH)).astype(np.float32)


@pytest.fixture
def neighbours(texts: np.ndarray) -> ItemNeighbours:
    rng = np.random.default_rng(1)
    indices = np.stack([rng.permutation(ITEMS)[:6] for _ in range(ITEMS)]).astype(np.int32)
    nearest = find_nearest_items(l2_normalize(texts), np.ones(ITEMS, np.bool_))
    return ItemNeighbours(indices, rng.normal(size=(ITEMS, 6)).astype(np.float32), 0.5, ColdStart(WEIGHTS, nearest))


def test_nearest_items_are_known_and_start_with_the_item(texts: np.ndarray) -> None:
    known = np.arange(ITEMS) % 3 > 0
    nearest = find_nearest_items(l2_normalize(texts), known)
    cosines = l2_normalize(texts) @ l2_normalize(texts).T
    for item in range(ITEMS):
        similar = [index for index in np.argsort(-cosines[item]) if known[index] and index != item]
        assert nearest[item].tolist() == ([item, *similar] if known[item] else similar)[: 1 + NEAREST_ITEMS]
    indices, cold = np.flatnonzero(known), np.flatnonzero(~known)
    nearest_known = find_nearest_known(l2_normalize(texts)[cold], l2_normalize(texts)[indices], indices)
    assert nearest_known.tolist() == nearest[cold, 0].tolist()
    assert find_nearest_items(l2_normalize(texts), np.arange(ITEMS) < 2)[1].tolist() == [1, 0, 0, 0, 0]


def test_cold_indices_are_below_that_of_no_item() -> None:
    nearest = np.arange(5)
    assert encode_cold_index(nearest).max() < -1
    assert decode_cold_index(encode_cold_index(nearest)).tolist() == nearest.tolist()


def test_cold_items_get_the_scores_of_their_nearest_items(neighbours: ItemNeighbours) -> None:
    items, liked = np.asarray([3, 5, -1, -7, 6]), np.asarray([True, True, True, True, False])
    known_scores, taken = np.zeros(ITEMS), np.zeros(ITEMS)
    for item, decay in ((3, 0.125), (5, 0.25)):
        known_scores[neighbours.indices[item]] += neighbours.weights[item] * decay
        taken[item] = decay
    assert neighbours.cold_start is not None
    terms = WEIGHTS.neighbours * known_scores + WEIGHTS.taken * taken
    nearest_items = neighbours.cold_start.nearest_items
    expected = [WEIGHTS.bias + (terms[nearest_items[item]] * NEAREST_WEIGHTS).sum() for item in range(ITEMS)]
    scores = neighbours.scores(items, liked)
    np.testing.assert_allclose(scores[encode_cold_index(np.arange(ITEMS))], expected, atol=1e-5)
    assert scores[-1] == 0
    plain = replace(neighbours, cold_start=None).scores(np.maximum(items, -1), liked)
    np.testing.assert_array_equal(scores[:ITEMS], plain[:ITEMS])
    assert len(plain) == ITEMS + 1


def test_contributions_of_events_add_up_to_the_cold_score_without_its_bias(neighbours: ItemNeighbours) -> None:
    items = np.asarray([3, 5, 3, -9, 6])
    candidates = np.append(encode_cold_index(np.arange(ITEMS)), np.arange(-1, ITEMS))
    liked = np.asarray([True, True, True, True, False])
    contributions = neighbours.contributions(items, liked, candidates)
    expected = neighbours.scores(items, liked)[candidates]
    expected[:ITEMS] -= WEIGHTS.bias
    np.testing.assert_allclose(contributions.sum(axis=1), expected, atol=1e-5)
    assert np.abs(contributions[:ITEMS]).max() > 0.1
    assert not contributions[:, 3:].any()


CONFIG = HistoryConfig(
    seed=0, epochs=4, batch_examples=16, events=16, rate=3e-3, weight_decay=0.01, dropout=0.0, id_dropout=0.3,
    halves=0.0, often=1.0, neighbours=NeighbourConfig(weight=2.0, ridge=5.0, kept=8), steps_of_user=10, inner=16,
    eye=8, find_newcomers=True,
)  # fmt: skip
HELD_OUT = draw_removed_items(60, 0.1, seed=1)


@pytest.fixture(scope="module")
def shop() -> tuple[Interactions, np.ndarray]:
    """Items of four kinds with texts to match. Each user stays with one kind and buys three items a day."""
    items, rng = 60, np.random.default_rng(0)
    kinds = np.arange(items) % 4
    vectors = np.eye(4, WIDTH)[kinds] + rng.normal(0, 0.2, (items, WIDTH))
    users = {
        f"u{user}": make_sequence(
            (86400.0 * day, dict.fromkeys(rng.choice(np.flatnonzero(kinds == user % 4), 3, False).tolist(), np.nan))
            for day in range(5)
        )
        for user in range(120)
    }
    names = tuple(str(item) for item in range(items))
    return Interactions("purchase", names, names, users), (vectors - vectors.mean(axis=0)).astype(np.float32)


@pytest.fixture(scope="module")
def split(shop: tuple[Interactions, np.ndarray]) -> Split:
    """A split without some items, other than those that are held out."""
    return remove_items(hold_out_last(shop[0]), draw_removed_items(60, 0.2, seed=9))


@pytest.fixture(scope="module")
def fitted(split: Split, shop: tuple[Interactions, np.ndarray]) -> HistoryConfig:
    return fit_cold_start(split.training, shop[1], CONFIG, HELD_OUT, lambda line: None)


def test_cold_items_get_their_share_of_the_next_interactions(
    split: Split, fitted: HistoryConfig, shop: tuple[Interactions, np.ndarray]
) -> None:
    interactions, vectors = shop
    complete = replace(hold_out_last(interactions), training=split.training)
    network = train_history_network(split.training, vectors, fitted, lambda line: None)
    before, cold = score_histories(network, vectors, complete, fitted), np.flatnonzero(network.known.numpy() == 0)
    assert len(cold) == 12
    scores = before.copy()
    scores[:, cold] += cold_start_scores(network, complete, cold)
    share = np.mean([np.isin(target, cold).mean() for target in complete.targets])
    new_share, old_share = (
        np.exp(log_softmax(logits, axis=1))[:, cold].sum(axis=1).mean() for logits in (scores, before)
    )
    assert abs(new_share - share) < 0.05
    assert share - old_share > 0.15


def test_cold_start_is_not_fitted_if_disabled_or_impossible(shop: tuple[Interactions, np.ndarray]) -> None:
    for change in ({"find_newcomers": False}, {"use_ids": False}, {"use_text": False}):
        config = replace(CONFIG, **change)  # type: ignore[arg-type]
        assert fit_cold_start(*shop, config, HELD_OUT, lambda line: None) is config


def test_fitted_weights_maximize_the_likelihood() -> None:
    rng = np.random.default_rng(2)
    scores, neighbour_scores, taken = (
        rng.normal(size=shape).astype(np.float32) for shape in ((300, 9), (300, 3), (300, 3))
    )
    cold, users = np.asarray([1, 4, 8]), tuple(str(user) for user in range(300))
    true = scores.copy()
    true[:, cold] += 0.8 + 0.5 * neighbour_scores - 0.4 * taken
    probabilities = np.exp(log_softmax(true.astype(float), axis=1))
    targets = tuple(np.asarray([rng.choice(9, p=row / row.sum())]) for row in probabilities)
    split = Split(Interactions("purchase", (), (), {}), users, targets)

    def likelihood(weights: ColdStartWeights) -> float:
        total = scores.copy()
        total[:, cold] += weights.bias + weights.neighbours * neighbour_scores + weights.taken * taken
        return float(log_softmax(total, axis=1)[np.arange(300), np.concatenate(targets)].mean())

    best = maximum_likelihood_weights(scores, cold, neighbour_scores, taken, split)
    for name in ("bias", "neighbours", "taken"):
        for step in (-0.1, 0.1):
            assert likelihood(best) > likelihood(replace(best, **{name: getattr(best, name) + step}))
    assert best.bias == pytest.approx(0.8, abs=0.35)


def assert_without_cold_start_score(
    recommender: Recommender, history: History, item_vectors: np.ndarray, indices: np.ndarray, cold: int
) -> None:
    plain = replace(history, training_indices=None)
    for items in (None, np.arange(60)):
        rankings = (
            recommender.rank(events, item_vectors, items, 60, training_indices=indices) for events in (history, plain)
        )
        with_neighbours, without = (ranked.scores[ranked.order == cold] for ranked in rankings)
        assert with_neighbours == without, "an item of the history gets no cold-start score"


def test_recommender_scores_cold_items_like_training(
    split: Split, fitted: HistoryConfig, shop: tuple[Interactions, np.ndarray]
) -> None:
    vectors = shop[1]
    network = train_history_network(split.training, vectors, fitted, lambda line: None)
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    weights["ids.weight"] = weights["ids.weight"] * weights["known"][:, None]
    weights |= {"centre": np.zeros(WIDTH, np.float32), "calibration": np.asarray([1.0, 0.0], np.float32)}
    names = list(shop[0].ids)
    unknown = np.flatnonzero(weights["known"] == 0)
    ids = training_index_by_id(names, weights["known"])
    for item in unknown[1:]:  # these came after training, the first did not
        del ids[names[item]]
    item_vectors = Recommender(weights, "shop", ids).item_vectors(vectors, names)
    recommender = Recommender(weights, "shop", ids, item_vectors)
    indices = recommender.cached_training_indices(names, item_vectors)
    assert (indices[unknown[1:]] < -1).all()
    assert indices[unknown[0]] == -1
    assert np.flatnonzero(recommender.is_cold(indices)).tolist() == unknown[1:].tolist()
    assert np.flatnonzero(Recommender(weights, "shop", ids).is_cold(indices)).tolist() == unknown.tolist()
    assert recommender.training_indices(["", None], item_vectors[:2])[0] == -1
    assert recommender.training_indices([None], item_vectors[[5]])[0] in (
        5,
        encode_cold_index(weights["kin"][[5], 0].astype(np.int64))[0],
    )
    known = int(np.flatnonzero(weights["known"])[0])
    changed = item_vectors.copy()
    changed[unknown[2]] = item_vectors[0] + 0.01
    more = np.concatenate([changed, item_vectors[[1]]])
    again = recommender.cached_training_indices([*names, "later"], more)
    assert again.tolist() == recommender.training_indices([*names, "later"], more).tolist()
    assert again[unknown[2]] != indices[unknown[2]]
    assert recommender.cached_training_indices(names, item_vectors).tolist() == indices.tolist()
    renamed = ["another" if index == known else name for index, name in enumerate(names)]
    assert (
        recommender.cached_training_indices(renamed, item_vectors).tolist()
        == recommender.training_indices(renamed, item_vectors).tolist()
    )
    expected = score_histories(network, vectors, split, fitted)
    expected[:, unknown[1:]] += cold_start_scores(network, split, unknown[1:])
    for row, sequence in enumerate(split.histories[:5]):
        past = make_history_input(sequence, "purchase", 16)
        days = ((sequence.times[-1] - sequence.times) / 86400).astype(np.float32)
        history = History(item_vectors[past.items], past.items, past.event_types, days, indices[past.items])
        best = recommender.rank(history, item_vectors, None, 60, training_indices=indices)
        np.testing.assert_allclose(logit(best.scores.astype(float)), expected[row][best.order], atol=2e-2)
        scored = recommender.score([history], item_vectors, np.arange(60), indices)[0]
        np.testing.assert_allclose(scored[best.order], best.scores, atol=1e-5)
        cold = next(item for item in best.order if indices[item] < -1)
        with_it = History(
            item_vectors[[*past.items, cold]],
            np.append(past.items, cold),
            np.append(past.event_types, past.event_types[0]),
            np.append(days, np.float32(0)),
            np.append(indices[past.items], indices[cold]),
        )
        assert_without_cold_start_score(recommender, with_it, item_vectors, indices, cold)
    assert np.abs(np.linalg.norm(item_vectors[indices < -1], axis=1) - SCALE).max() < 1e-4
