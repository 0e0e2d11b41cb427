"""Ranking without torch: what serves gives the trained network's scores, and its weights tell what a score rests on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import erf, logit

from models.bundle import BundleError, load_bundle
from models.catalogue.top_k import top_k
from models.networks.recommender import HistoryBatch, HistoryNetwork, HistoryShape, LogSumExp
from models.ranking.bundle_files import WEIGHTS, load_own_catalogue, load_recommender
from models.ranking.candidates import preselect
from models.ranking.events import (
    AGES,
    DISLIKE,
    EVENT_TYPES,
    POSITION_BUCKETS,
    UNKNOWN_AGE,
    History,
    age_bucket,
    event_types,
    position_bucket,
)
from models.ranking.numpy_layers import gelu, softmax_terms
from models.ranking.recommender import MAX_RERANKED, Recommender
from tests.support.tiny_bundle import CATALOGUE, CATALOGUE_ITEMS, tiny_recommend_bundle

ITEMS, WIDTH = 60, 24
BOUGHT = EVENT_TYPES.index("purchase")


@pytest.fixture(scope="module")
def network() -> HistoryNetwork:
    torch.manual_seed(4)
    found = HistoryNetwork(HistoryShape(WIDTH, 16, 2, 4, 2, 4), ITEMS).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    found.neighbours = torch.stack([torch.randperm(ITEMS)[:5] for _ in range(ITEMS)]).int()
    found.nearness = torch.randn(ITEMS, 5)
    found.fade.fill_(0.7)
    return found


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
    numbers = np.asarray(items, np.int64)
    acts = np.asarray(kinds or [BOUGHT] * len(items))
    return History(vectors[numbers], numbers, acts, np.asarray(days, np.float32), numbers)


def test_numpy_gives_what_the_network_gives(
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
        placed = network.item_vectors(texts, network.known)
        expected = network(batch, placed)[0].numpy()
    np.testing.assert_allclose(vectors, placed.numpy(), atol=1e-5)
    numbers = np.arange(ITEMS)
    found = recommender.rank(history(vectors, items, days), vectors, numbers, ITEMS, trained=numbers)
    np.testing.assert_allclose(logit(found.scores.astype(float)), expected[found.order], rtol=1e-3, atol=1e-3)
    assert (np.diff(found.scores) <= 0).all()


def test_gradients_of_the_candidates_attention_are_right() -> None:
    generator = torch.Generator().manual_seed(6)
    asked, shown, again = (
        torch.randn(*shape, dtype=torch.double, generator=generator, requires_grad=True)
        for shape in ((6, 3), (2, 4, 3), (2, 4))
    )
    items = torch.tensor([[0, 1, 1, -1], [5, -1, 2, 2]])
    assert torch.autograd.gradcheck(LogSumExp.apply, (asked, shown, again, items))


def test_weights_are_by_how_much_a_score_falls_without_the_event(recommender: Recommender, vectors: np.ndarray) -> None:
    """For one head exactly: log(1 + Σ) without an event is log(1 - its weight) lower, taste and states apart."""
    weights = dict(recommender._w) | {"eyes": np.asarray([1.0, 0.0], np.float32)}
    one = Recommender(weights, "shop", recommender.ids)
    whole = history(vectors, [3, 5, 9], [9.0, 3.0, 0.0])
    _, shown = one._reading.encode(whole)
    liked = np.ones(3, bool)
    (look,) = one._attention.attend(shown, whole, liked, vectors, np.arange(ITEMS))
    kept = np.asarray([True, False, True])
    (fewer,) = one._attention.attend(shown[kept], whole.select(kept), liked[kept], vectors, np.arange(ITEMS))
    parts = look.weights(np.arange(ITEMS))
    np.testing.assert_allclose(fewer.added - look.added, np.log1p(-parts[:, 1]), atol=1e-4)


def test_neighbours_speak_for_what_is_new_to_the_user_once_for_each_item(
    recommender: Recommender, vectors: np.ndarray
) -> None:
    numbers, neighbours = np.arange(ITEMS), recommender.item_neighbours
    whole = history(vectors, [3, 5, 3], [9.0, 3.0, 0.0])
    plain, heard = (recommender.rank(whole, vectors, numbers, ITEMS, trained=one) for one in (None, numbers))
    before, after = (dict(zip(one.order, logit(one.scores.astype(float)), strict=True)) for one in (plain, heard))
    said = np.zeros(ITEMS)
    for own, faded in ((3, 1), (5, 0.7)):
        said[neighbours.numbers[own]] += neighbours.weights[own] * faded
    said[[3, 5]] = 0
    for item in numbers:
        assert after[item] - before[item] == pytest.approx(said[item], abs=2e-3)
    weights = dict(zip(heard.order, heard.weights, strict=True))
    near = neighbours.numbers[3][np.argmax(neighbours.weights[3])]
    attended = dict(zip(plain.order, plain.weights, strict=True))
    assert weights[near][[0, 2]].sum() > attended[near][[0, 2]].sum()
    assert np.abs(heard.weights).sum(axis=1).max() <= 1


def test_what_neighbours_say_does_not_fade_in_older_bundles(recommender: Recommender) -> None:
    older = {name: value for name, value in recommender._w.items() if name != "fade"}
    own, liked = np.asarray([3, 5]), np.ones(2, bool)
    found, faded = (one.item_neighbours.scores(own, liked) for one in (Recommender(older, "shop", {}), recommender))
    neighbours = recommender.item_neighbours
    expected = np.zeros(ITEMS)
    for item in own:
        expected[neighbours.numbers[item]] += neighbours.weights[item]
    expected[own] = 0
    np.testing.assert_allclose(found[:-1], expected, atol=1e-6)
    assert not np.allclose(found, faded)


def test_unknown_items_have_no_neighbours(recommender: Recommender, vectors: np.ndarray) -> None:
    numbers, none = np.arange(ITEMS), np.full(ITEMS, -1)
    whole = history(vectors, [3, 5], [3.0, 0.0])
    plain = recommender.rank(whole, vectors, numbers, ITEMS)
    for events, candidates in ((whole.training_indices, none), (none[:2], numbers)):
        one = replace(whole, training_indices=events)
        found = recommender.rank(one, vectors, numbers, ITEMS, trained=candidates)
        np.testing.assert_array_equal(found.order, plain.order)
        np.testing.assert_array_equal(found.scores, plain.scores)


def test_numbers_of_trained_items_are_found_anew_for_another_list(
    recommender: Recommender, vectors: np.ndarray
) -> None:
    first, second = ["3", "", "x"], ["5", None]
    for _ in range(2):
        assert recommender.cached_training_indices(first, vectors[:3]).tolist() == [3, -1, -1]
        assert recommender.cached_training_indices(second, vectors[:2]).tolist() == [5, -1]


def test_weights_of_a_row_sum_to_less_than_one(recommender: Recommender, vectors: np.ndarray) -> None:
    found = recommender.rank(history(vectors, [1, 2, 2], [5.0, 1.0, 0.0]), vectors, np.arange(ITEMS), 10)
    assert (found.weights > 0).all()
    assert (found.weights.sum(axis=1) < 1).all()


def test_dislike_takes_away_what_a_like_adds(recommender: Recommender, vectors: np.ndarray) -> None:
    numbers = np.arange(ITEMS)
    plain = history(vectors, [1, 2], [5.0, 0.0])
    disliked = history(vectors, [1, 2, 30], [5.0, 0.0, 0.0], [BOUGHT, BOUGHT, DISLIKE])
    before, after = (recommender.rank(one, vectors, numbers, ITEMS) for one in (plain, disliked))
    old = dict(zip(before.order.tolist(), before.scores.tolist(), strict=True))
    new = dict(zip(after.order.tolist(), after.scores.tolist(), strict=True))
    assert new[30] < old[30]
    assert (after.weights[:, 2] < 0).all()


def test_history_of_dislikes_alone_is_ranked(recommender: Recommender, vectors: np.ndarray) -> None:
    found = recommender.rank(history(vectors, [1], [0.0], [DISLIKE]), vectors, np.arange(ITEMS), ITEMS)
    assert np.isfinite(found.scores).all()


def test_candidates_left_out_are_not_ranked(recommender: Recommender, vectors: np.ndarray) -> None:
    allowed = np.zeros(ITEMS, bool)
    allowed[[4, 8]] = True
    found = recommender.rank(history(vectors, [1], [0.0]), vectors, np.arange(ITEMS), 10, allowed)
    assert sorted(found.order.tolist()) == [4, 8]


def test_own_items_are_ranked_among_many(recommender: Recommender, vectors: np.ndarray) -> None:
    """However low the taste alone would put it, an item that comes again is looked at with its own attention."""
    chance = np.random.default_rng(7)
    many = chance.normal(size=(20 * MAX_RERANKED, WIDTH)).astype(np.float32)
    taste, _ = recommender._reading.encode(history(vectors, [3], [0.0]))
    many[50] = -taste
    numbers = np.arange(len(many))
    chosen = preselect(many @ taste, numbers, np.asarray([50]), MAX_RERANKED)
    assert 50 in chosen
    assert len(chosen) == MAX_RERANKED + 1


def test_unknown_number_is_nobodys_again(recommender: Recommender, vectors: np.ndarray) -> None:
    """-1 says that no candidate is the same item, not that all of number -1 are."""
    plain = history(vectors, [3], [0.0])
    foreign = History(plain.vectors, np.asarray([-1]), plain.kinds, plain.ages)
    same = np.full(2, -1)
    liked, asked = np.ones(1, bool), vectors[[3, 4]]
    _, shown = recommender._reading.encode(plain)
    (known,) = recommender._attention.attend(shown, plain, liked, asked, np.asarray([3, 4]))
    (unknown,) = recommender._attention.attend(shown, foreign, liked, asked, same)
    assert unknown.added[0] < known.added[0] - 0.1
    assert unknown.added[1] == known.added[1]


def test_empty_history_is_refused(recommender: Recommender, vectors: np.ndarray) -> None:
    with pytest.raises(ValueError, match="empty history"):
        recommender.rank(history(vectors, [], []), vectors, np.arange(ITEMS), 3)


def test_ages_and_places_are_buckets() -> None:
    assert age_bucket(np.asarray([np.nan]))[0] == UNKNOWN_AGE
    ages = age_bucket(np.asarray([0.0, 0.05, 1.0, 30.0, 365.0, 1e6]))
    assert (np.diff(ages) > 0).all()
    assert ages.max() < UNKNOWN_AGE < AGES
    for events in (300, 50, 1):
        places = position_bucket(events)
        assert len(places) == events
        assert places[-1] == 0
        assert (np.diff(places) <= 0).all()
        assert places.max() < POSITION_BUCKETS


def test_low_rating_is_no_like() -> None:
    kinds = event_types("rating", np.asarray([1.0, 3.0, 5.0], np.float32))
    assert [EVENT_TYPES[kind] for kind in kinds] == ["other", "like", "like"]


def test_known_id_changes_a_vector_and_an_unknown_one_does_not(recommender: Recommender, texts: torch.Tensor) -> None:
    raw = texts.numpy()[:2]
    known, unknown, none = (recommender.item_vectors(raw, ids) for ids in (["0", "1"], ["x", "y"], [None, None]))
    assert np.abs(known - none).max() > 0.01
    np.testing.assert_array_equal(unknown, none)


def test_bundle_gives_its_recommender_and_its_catalogue(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("spread", ["random", "sorted", "equal", "left out"])
@pytest.mark.parametrize("count", [1_000, 100_000])
def test_the_best_of_many_are_the_best(count: int, spread: str) -> None:
    scores = np.random.default_rng(6).normal(size=count).astype(np.float32)
    if spread == "sorted":
        scores.sort()
    elif spread == "equal":
        scores[:] = 1
    elif spread == "left out":
        scores[500:] = -np.inf
    found = top_k(scores, MAX_RERANKED)
    assert len(set(found.tolist())) == MAX_RERANKED
    assert sorted(scores[found]) == sorted(np.sort(scores)[-MAX_RERANKED:])


def test_without_numbers_a_place_is_the_number() -> None:
    scores, own = np.arange(2_000, dtype=np.float32), np.asarray([-1, 7, 7, 2_500])
    expected = [7, *range(1_600, 2_000)]
    assert preselect(scores, None, own, MAX_RERANKED).tolist() == expected
    assert preselect(scores, np.arange(2_000), own, MAX_RERANKED).tolist() == expected


def test_gelu_is_by_erf() -> None:
    values = np.concatenate([np.linspace(-9, 9, 4_001), [0.0, -1e4, 1e4]]).astype(np.float32)
    exact = values.astype(float) * (1 + erf(values.astype(float) / np.sqrt(2))) / 2
    np.testing.assert_allclose(gelu(values), exact, rtol=2e-7, atol=1e-6)


def test_softmax_of_large_values_is_finite() -> None:
    values = np.asarray([[1000.0, -1000.0], [1001.0, -1000.0]], np.float32)
    found, total = softmax_terms(values)
    np.testing.assert_allclose(found / total, [[1 / (1 + np.e), 0.5], [np.e / (1 + np.e), 0.5]], rtol=1e-6)
