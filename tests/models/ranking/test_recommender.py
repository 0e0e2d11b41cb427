"""Ranking without torch: scores equal those of the trained network, and weights show which events they rest on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import logit

from models.bundle import BundleError, load_bundle
from models.networks.recommender import HistoryBatch, HistoryNetwork, HistoryShape, LogSumExp
from models.ranking.bundle_files import WEIGHTS, load_own_catalogue, load_recommender
from models.ranking.candidates import preselect
from models.ranking.events import DISLIKE, EVENT_TYPES, History, age_bucket, position_bucket
from models.ranking.recommender import MAX_RERANKED, Recommender
from tests.support.tiny_bundle import CATALOGUE, CATALOGUE_ITEMS, tiny_recommend_bundle

ITEMS, WIDTH = 60, 24
BOUGHT = EVENT_TYPES.index("purchase")


@pytest.fixture(scope="module")
def network() -> HistoryNetwork:
    torch.manual_seed(4)
    model = HistoryNetwork(HistoryShape(WIDTH, 16, 2, 4, 2, 4), ITEMS).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.neighbours = torch.stack([torch.randperm(ITEMS)[:5] for _ in range(ITEMS)]).int()
    model.nearness = torch.randn(ITEMS, 5)
    model.fade.fill_(0.7)
    return model


@pytest.fixture(scope="module")
def texts() -> torch.Tensor:
    return torch.randn(ITEMS, WIDTH, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def recommender(network: HistoryNetwork) -> Recommender:
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    weights |= {"centre": np.zeros(WIDTH, np.float32), "calibration": np.asarray([1.0, 0.0], np.float32)}
    return Recommender(weights, "shop", {str(number): number for number in range(ITEMS)})


@pytest.fixture(scope="module")
def vectors(recommender: Recommender, texts: torch.Tensor) -> np.ndarray:
    return recommender.item_vectors(texts.numpy(), [str(number) for number in range(ITEMS)])


def history(vectors: np.ndarray, items: list[int], days: list[float], kinds: list[int] | None = None) -> History:
    indices = np.asarray(items, np.int64)
    event_kinds = np.asarray(kinds or [BOUGHT] * len(items))
    return History(vectors[indices], indices, event_kinds, np.asarray(days, np.float32), indices)


def test_numpy_scores_equal_those_of_the_network(
    network: HistoryNetwork, recommender: Recommender, texts: torch.Tensor, vectors: np.ndarray
) -> None:
    items, days = [3, 5, 3, 9], [400.0, 30.0, 3.0, 0.0]
    ages = np.append(age_bucket(np.asarray(days)), 0)
    batch = HistoryBatch(
        torch.tensor([[*items, -1]]),
        torch.full((1, 5), BOUGHT),
        torch.from_numpy(ages)[None],
        torch.from_numpy(np.append(position_bucket(4), 0))[None],
    )
    with torch.inference_mode():
        item_vectors = network.item_vectors(texts, network.known)
        expected = network(batch, item_vectors)[0].numpy()
    np.testing.assert_allclose(vectors, item_vectors.numpy(), atol=1e-5)
    indices = np.arange(ITEMS)
    ranked = recommender.rank(history(vectors, items, days), vectors, indices, ITEMS, training_indices=indices)
    np.testing.assert_allclose(logit(ranked.scores.astype(float)), expected[ranked.order], rtol=1e-3, atol=1e-3)
    assert (np.diff(ranked.scores) <= 0).all()


def test_gradients_of_candidate_attention_are_exact() -> None:
    generator = torch.Generator().manual_seed(6)
    queries, keys, repeat_bias = (
        torch.randn(*shape, dtype=torch.double, generator=generator, requires_grad=True)
        for shape in ((6, 3), (2, 4, 3), (2, 4))
    )
    items = torch.tensor([[0, 1, 1, -1], [5, -1, 2, 2]])
    assert torch.autograd.gradcheck(LogSumExp.apply, (queries, keys, repeat_bias, items))


def test_event_weights_predict_the_score_without_the_event(recommender: Recommender, vectors: np.ndarray) -> None:
    """With one head, log(1 + Σ) falls by exactly log(1 - weight) without an event, user vector and states apart."""
    weights = recommender.weights | {"eyes": np.asarray([1.0, 0.0], np.float32)}
    single_head = Recommender(weights, "shop", recommender.ids)
    whole = history(vectors, [3, 5, 9], [9.0, 3.0, 0.0])
    _, keys = single_head.encoder.encode(whole)
    liked = np.ones(3, bool)
    (attended,) = single_head.attention.attend(keys, whole, liked, vectors, np.arange(ITEMS))
    mask = np.asarray([True, False, True])
    (fewer,) = single_head.attention.attend(keys[mask], whole.select(mask), liked[mask], vectors, np.arange(ITEMS))
    event_weights = attended.event_weights(np.arange(ITEMS))
    np.testing.assert_allclose(fewer.scores - attended.scores, np.log1p(-event_weights[:, 1]), atol=1e-4)


def test_each_history_item_adds_its_neighbour_scores_once_to_new_items(
    recommender: Recommender, vectors: np.ndarray
) -> None:
    numbers, neighbours = np.arange(ITEMS), recommender.item_neighbours
    whole = history(vectors, [3, 5, 3], [9.0, 3.0, 0.0])
    plain, combined = (
        recommender.rank(whole, vectors, numbers, ITEMS, training_indices=indices) for indices in (None, numbers)
    )
    before, after = (
        dict(zip(ranked.order, logit(ranked.scores.astype(float)), strict=True)) for ranked in (plain, combined)
    )
    scores = np.zeros(ITEMS)
    for item, decay in ((3, 1), (5, 0.7)):
        scores[neighbours.indices[item]] += neighbours.weights[item] * decay
    scores[[3, 5]] = 0
    for candidate in numbers:
        assert after[candidate] - before[candidate] == pytest.approx(scores[candidate], abs=2e-3)
    weights = dict(zip(combined.order, combined.weights, strict=True))
    near = neighbours.indices[3][np.argmax(neighbours.weights[3])]
    attended = dict(zip(plain.order, plain.weights, strict=True))
    assert weights[near][[0, 2]].sum() > attended[near][[0, 2]].sum()
    assert np.abs(combined.weights).sum(axis=1).max() <= 1


def test_older_bundles_have_no_recency_decay(recommender: Recommender) -> None:
    older = {name: value for name, value in recommender.weights.items() if name != "fade"}
    items, liked = np.asarray([3, 5]), np.ones(2, bool)
    constant, decayed = (
        model.item_neighbours.scores(items, liked) for model in (Recommender(older, "shop", {}), recommender)
    )
    neighbours = recommender.item_neighbours
    expected = np.zeros(ITEMS)
    for item in items:
        expected[neighbours.indices[item]] += neighbours.weights[item]
    expected[items] = 0
    np.testing.assert_allclose(constant[:-1], expected, atol=1e-6)
    assert not np.allclose(constant, decayed)


def test_unknown_items_have_no_neighbours(recommender: Recommender, vectors: np.ndarray) -> None:
    numbers, none = np.arange(ITEMS), np.full(ITEMS, -1)
    whole = history(vectors, [3, 5], [3.0, 0.0])
    plain = recommender.rank(whole, vectors, numbers, ITEMS)
    for events, candidates in ((whole.training_indices, none), (none[:2], numbers)):
        unknown = replace(whole, training_indices=events)
        ranked = recommender.rank(unknown, vectors, numbers, ITEMS, training_indices=candidates)
        np.testing.assert_array_equal(ranked.order, plain.order)
        np.testing.assert_array_equal(ranked.scores, plain.scores)


def test_cached_training_indices_follow_the_list_of_items(recommender: Recommender, vectors: np.ndarray) -> None:
    first, second = ["3", "", "x"], ["5", None]
    for _ in range(2):
        assert recommender.cached_training_indices(first, vectors[:3]).tolist() == [3, -1, -1]
        assert recommender.cached_training_indices(second, vectors[:2]).tolist() == [5, -1]


def test_event_weights_of_a_candidate_sum_to_less_than_one(recommender: Recommender, vectors: np.ndarray) -> None:
    ranked = recommender.rank(history(vectors, [1, 2, 2], [5.0, 1.0, 0.0]), vectors, np.arange(ITEMS), 10)
    assert (ranked.weights > 0).all()
    assert (ranked.weights.sum(axis=1) < 1).all()


def test_dislike_lowers_the_score_of_its_item(recommender: Recommender, vectors: np.ndarray) -> None:
    numbers = np.arange(ITEMS)
    plain = history(vectors, [1, 2], [5.0, 0.0])
    disliked = history(vectors, [1, 2, 30], [5.0, 0.0, 0.0], [BOUGHT, BOUGHT, DISLIKE])
    before, after = (recommender.rank(events, vectors, numbers, ITEMS) for events in (plain, disliked))
    old = dict(zip(before.order.tolist(), before.scores.tolist(), strict=True))
    new = dict(zip(after.order.tolist(), after.scores.tolist(), strict=True))
    assert new[30] < old[30]
    assert (after.weights[:, 2] < 0).all()


def test_history_of_dislikes_only_is_ranked(recommender: Recommender, vectors: np.ndarray) -> None:
    ranked = recommender.rank(history(vectors, [1], [0.0], [DISLIKE]), vectors, np.arange(ITEMS), ITEMS)
    assert np.isfinite(ranked.scores).all()


def test_only_allowed_candidates_are_ranked(recommender: Recommender, vectors: np.ndarray) -> None:
    allowed = np.zeros(ITEMS, bool)
    allowed[[4, 8]] = True
    ranked = recommender.rank(history(vectors, [1], [0.0]), vectors, np.arange(ITEMS), 10, allowed)
    assert sorted(ranked.order.tolist()) == [4, 8]


def test_history_items_are_preselected_among_many(recommender: Recommender, vectors: np.ndarray) -> None:
    """An item of the history is reranked however low its product with the user vector is."""
    rng = np.random.default_rng(7)
    many = rng.normal(size=(20 * MAX_RERANKED, WIDTH)).astype(np.float32)
    user_vector, _ = recommender.encoder.encode(history(vectors, [3], [0.0]))
    many[50] = -user_vector
    numbers = np.arange(len(many))
    selected = preselect(many @ user_vector, numbers, np.asarray([50]), MAX_RERANKED)
    assert 50 in selected
    assert len(selected) == MAX_RERANKED + 1


def test_unknown_items_never_count_as_repeats(recommender: Recommender, vectors: np.ndarray) -> None:
    """Item number -1 equals no candidate, not even one with number -1."""
    plain = history(vectors, [3], [0.0])
    foreign = History(plain.vectors, np.asarray([-1]), plain.kinds, plain.ages)
    same = np.full(2, -1)
    liked, candidates = np.ones(1, bool), vectors[[3, 4]]
    _, keys = recommender.encoder.encode(plain)
    (known,) = recommender.attention.attend(keys, plain, liked, candidates, np.asarray([3, 4]))
    (unknown,) = recommender.attention.attend(keys, foreign, liked, candidates, same)
    assert unknown.scores[0] < known.scores[0] - 0.1
    assert unknown.scores[1] == known.scores[1]


def test_empty_history_is_refused(recommender: Recommender, vectors: np.ndarray) -> None:
    with pytest.raises(ValueError, match="empty history"):
        recommender.rank(history(vectors, [], []), vectors, np.arange(ITEMS), 3)


def test_only_a_known_id_changes_an_item_vector(recommender: Recommender, texts: torch.Tensor) -> None:
    raw = texts.numpy()[:2]
    known, unknown, none = (recommender.item_vectors(raw, ids) for ids in (["0", "1"], ["x", "y"], [None, None]))
    assert np.abs(known - none).max() > 0.01
    np.testing.assert_array_equal(unknown, none)


def test_recommender_and_catalogue_are_loaded_from_a_bundle(tmp_path: Path) -> None:
    bundle = load_bundle(tiny_recommend_bundle(tmp_path))
    recommender = load_recommender(bundle)
    name, items, vectors = load_own_catalogue(bundle)
    assert name == recommender.catalogue_name == CATALOGUE
    assert items == list(CATALOGUE_ITEMS)
    assert vectors.shape == (len(items), recommender.width)


def test_bundle_without_history_weights_is_refused(tmp_path: Path) -> None:
    path = tiny_recommend_bundle(tmp_path)
    bundle = load_bundle(path)
    (path / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(BundleError, match="no history model"):
        load_recommender(bundle)
