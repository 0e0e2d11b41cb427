"""From baskets to a bundle: a tiny encoder and a history network that learn a tiny shop, the export and the figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from models.bundle import load_bundle
from models.data.interactions import draw_removed_items, load_held_out, remove_items
from models.evaluation.ranking_metrics import measure_rankings, sort_by_score
from models.evaluation.recommendation import evaluate_recommender, hit_mask, recommendation_table, write_recommendation
from models.export import recommendation as exporting
from models.export.parity import ParityError
from models.export.recommendation import export_recommend
from models.networks.recommender import AS_TRAINED
from models.prediction.calibration_fit import expected_calibration_error
from models.ranking.bundle_files import load_own_catalogue, load_recommender
from models.ranking.cold_start import ColdStartWeights, decode_cold_index
from models.ranking.events import EVENT_TYPES, History
from models.recommender_training.history_network import (
    FOLDS,
    HistoryConfig,
    fit_neighbours_by_fold,
    score_histories,
    score_neighbours_by_fold,
    train_history_network,
)
from models.recommender_training.item_encoder import ItemEncoderConfig
from models.recommender_training.item_neighbours import NeighbourConfig
from models.recommender_training.recommendation import (
    VECTORS,
    AnchorTexts,
    RecommendConfig,
    center_vectors,
    load_recommend_run,
    read_recommend_config,
    train_recommend,
)
from models.recommender_training.score_weights import choose_score_weights
from models.training.classification import CONFIGS
from models.training.trainer import ConfigError
from tests.support.tiny_networks import tiny_config
from tests.support.tiny_shop import write_shop

pytestmark = pytest.mark.slow

CONFIG = RecommendConfig(
    removed=0.1,
    removed_seed=7,
    items=tiny_config(
        ItemEncoderConfig,
        seed=3,
        epochs=4,
        head_rate=1e-3,
        warmup_steps=2,
        anneal=0.9,
        freeze_embeddings=True,
        validation_rows=0,
        checkpoint_every=3,
        frozen_layers=0,
        temperature=0.1,
        keep_weight=1.0,
        kept_rows=2,
    ),
    histories=HistoryConfig(
        seed=0,
        epochs=6,
        batch_examples=16,
        events=32,
        rate=3e-3,
        weight_decay=0.01,
        dropout=0.1,
        id_dropout=0.3,
        halves=0.2,
        often=1.0,
        neighbours=NeighbourConfig(weight=1.0, ridge=1.0, kept=8),
        steps_of_user=10,
        inner=16,
        eye=8,
        find_newcomers=True,
    ),
    kept=(AnchorTexts("zh", 5),),
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def run(base: Path, shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_recommend(CONFIG, str(base), shop, shop, tmp_path_factory.mktemp("run"), lambda line: None)


@pytest.fixture(scope="module")
def bundle(run: Path, shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "recommend"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(exporting, "MIN_COSINE", 0.8)  # random weights round badly
        return export_recommend(run, shop, out, "0.0.1", lambda line: None).path


def test_the_recommender_learns_the_next_baskets(bundle: Path, shop: Path) -> None:
    report = evaluate_recommender(load_bundle(bundle), shop)
    split = load_held_out(shop)
    popular = np.bincount(np.concatenate([sequence.items for sequence in split.training.users.values()]), minlength=32)
    everyone = np.tile(popular.astype(np.float64), (len(split.users), 1))
    assert report.every.ndcg > measure_rankings(sort_by_score(everyone), split.targets, 32).ndcg + 0.3
    assert report.again.ndcg > 0.4
    assert report.calibration_error < 0.1
    assert report.deletion.named > report.deletion.random


def test_the_bundle_has_the_shop_as_its_catalogue(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    name, items, vectors = load_own_catalogue(loaded)
    assert name == "online_retail"
    assert (items[3].item_id, items[3].text, items[3].attributes) == ("i3", "d cup", {"price": 3.5})
    assert sum(item.popularity for item in items) > 80
    assert np.abs(np.linalg.norm(vectors, axis=1) - 4).max() < 2
    assert set(load_recommender(loaded).ids) == {item.item_id for item in items}


def test_the_card_and_the_files_have_the_figures(bundle: Path, shop: Path, tmp_path: Path) -> None:
    loaded = load_bundle(bundle)
    report = evaluate_recommender(loaded, shop)
    write_recommendation(report, tmp_path)
    assert recommendation_table(report) in (bundle / "CARD.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "recommend.json").read_text())["every"]["users"] == 80
    assert {metric.name for metric in loaded.metrics} == {"hr_at_10", "ndcg_at_10"}


def test_an_export_without_parity_is_refused_and_leaves_the_old_bundle(run: Path, shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "recommend"
    out.mkdir()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(exporting, "MIN_COSINE", 1.1)
        with pytest.raises(ParityError, match="mean cosine"):
            export_recommend(run, shop, out, "0.0.1", lambda line: None)
    assert list(tmp_path.iterdir()) == [out]
    assert list(out.iterdir()) == []


def test_the_run_records_how_it_was_trained(run: Path, base: Path) -> None:
    loaded = load_recommend_run(run)
    assert loaded.base == str(base)
    newcomers = loaded.config.histories.newcomers
    assert isinstance(newcomers, ColdStartWeights)
    assert loaded.config == replace(CONFIG, histories=replace(CONFIG.histories, newcomers=newcomers))


def test_a_cold_item_gets_the_scores_of_its_nearest_items(run: Path, bundle: Path) -> None:
    recommender, (_, items, vectors) = load_recommender(load_bundle(bundle)), load_own_catalogue(load_bundle(bundle))
    added = (vectors - load_file(run / "history.safetensors")["ids.weight"])[[9]]  # the vector of the text alone
    (number,) = recommender.training_indices(["added later"], added)
    assert items[decode_cold_index(number)].text == "b hat"
    numbers, taken = np.append(np.arange(32), number), np.asarray([10])
    history = History(
        vectors[taken], taken, np.asarray([EVENT_TYPES.index("purchase")]), np.asarray([0.0], np.float32), taken
    )
    every = np.concatenate([vectors, added])
    adjusted, plain = (
        recommender.score([history], every, np.arange(33), indices)[0]
        for indices in (numbers, np.append(numbers[:-1], -1))
    )
    assert adjusted[32] != plain[32]
    weights = load_recommend_run(run).config.histories.newcomers
    assert weights is not None
    assert f"gets {weights.bias:.2f}, plus {weights.neighbours:.2f} times" in (bundle / "CARD.md").read_text(
        encoding="utf-8"
    )
    np.testing.assert_array_equal(adjusted[:32], plain[:32])


def test_the_history_network_is_retrained_without_the_encoder(run: Path, base: Path, shop: Path) -> None:
    """A run that was stopped after its encoder resumes there and ends with the same weights."""
    vectors = (run / VECTORS).read_bytes()
    before = (run / "history.safetensors").read_bytes()
    (run / "history.safetensors").unlink()
    train_recommend(CONFIG, str(base), shop, shop, run, lambda line: None)
    assert (run / VECTORS).read_bytes() == vectors
    assert (run / "history.safetensors").read_bytes() == before


def test_chosen_score_weights_are_in_the_run_the_weights_and_the_card(
    run: Path, bundle: Path, base: Path, shop: Path, tmp_path: Path
) -> None:
    copy = copytree(run, tmp_path / "run")
    config = replace(CONFIG, histories=replace(CONFIG.histories, epochs=1, choose_scales=True, find_newcomers=False))
    train_recommend(config, str(base), shop, shop, copy, lambda line: None)
    histories = load_recommend_run(copy).config.histories
    assert histories == choose_score_weights(
        load_held_out(shop).training, center_vectors(_vectors(run)), config.histories, lambda line: None
    )
    assert histories.scales != AS_TRAINED
    assert float(load_file(copy / "history.safetensors")["often"][0]) == histories.often * histories.scales.often
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(exporting, "MIN_COSINE", 0.8)
        exported = export_recommend(copy, shop, tmp_path / "recommend", "0.0.1", lambda line: None).path
    sentence = (
        f"Attention was then multiplied by {histories.scales.attention}, neighbours by {histories.scales.neighbours}"
    )
    assert sentence in (exported / "CARD.md").read_text(encoding="utf-8")
    assert "multiplied" not in (bundle / "CARD.md").read_text(encoding="utf-8")


def test_a_removed_item_is_neither_known_nor_predicted_in_training(run: Path, shop: Path) -> None:
    texts = center_vectors(_vectors(run))
    removed = draw_removed_items(len(texts), 0.1, 7)
    split = remove_items(load_held_out(shop), removed)
    network = train_history_network(split.training, texts, CONFIG.histories, lambda line: None)
    assert (network.known[removed] == 0).all()
    assert network.known.sum() == len(texts) - len(removed)
    scores = score_histories(network, texts, split, CONFIG.histories)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("change", ["use_text", "use_ids", "use_time", "use_candidates"])
def test_each_component_can_be_left_out(run: Path, shop: Path, change: str) -> None:
    split, schedule = load_held_out(shop), replace(CONFIG.histories, epochs=1, **{change: False})  # type: ignore[arg-type]
    texts = _vectors(run)
    network = train_history_network(split.training, texts, schedule, lambda line: None)
    plain = score_histories(network, texts, split, schedule)
    assert np.isfinite(plain).all()
    if change == "use_text":
        np.testing.assert_array_equal(plain, score_histories(network, texts[::-1].copy(), split, schedule))
    if change == "use_ids":
        assert (network.known == 0).all()
    if change == "use_candidates":
        assert (network.eyes == 0).all()


@pytest.mark.parametrize(("often", "weight"), [(0.0, 2.0), (3.0, 0.0)])
def test_a_residual_network_is_trained_beside_the_fixed_components(
    run: Path, shop: Path, often: float, weight: float
) -> None:
    split, texts = load_held_out(shop), center_vectors(_vectors(run))
    neighbours = replace(CONFIG.histories.neighbours, weight=weight)
    schedule = replace(CONFIG.histories, epochs=1, often=often, neighbours=neighbours)
    plain, residual_network = (
        train_history_network(split.training, texts, replace(schedule, residual=residual), lambda line: None)
        for residual in (False, True)
    )
    assert plain.often == residual_network.often == often
    assert plain.nearness.equal(residual_network.nearness)
    assert not plain.taste.weight.equal(residual_network.taste.weight)


def test_neighbour_weights_in_training_are_fitted_without_the_user(shop: Path) -> None:
    """Only the first user takes 0 and 31 together, so the weights of this user's fold do not link them."""
    training = load_held_out(shop).training
    first, *rest = training.users.items()
    sequence = first[1]
    changed = replace(sequence, items=np.where(np.arange(len(sequence)) % 2, 0, 31))
    fold_weights = fit_neighbours_by_fold(
        replace(training, users=dict([(first[0], changed), *rest])), CONFIG.histories.neighbours
    )
    items = torch.tensor([[31, -1]] * 2)
    same_fold, other_fold = score_neighbours_by_fold(items, [0, 1], fold_weights, decay=1.0)[:, 0]
    assert abs(float(same_fold)) < 1e-6
    assert float(other_fold) > 0.1
    assert len(fold_weights) == FOLDS


def test_calibration_error_is_the_distance_of_scores_from_outcomes() -> None:
    rankings, scores = np.asarray([[0, 1], [0, 1]]), np.full(4, 0.5, np.float32)
    half, every = (hit_mask(rankings, [np.asarray(items)] * 2).ravel() for items in ([0], [0, 1]))
    assert expected_calibration_error(scores, half) == pytest.approx(0)
    assert expected_calibration_error(scores, every) == pytest.approx(0.5)


def test_the_shipped_configuration_is_valid_and_an_unknown_field_is_named(tmp_path: Path) -> None:
    assert read_recommend_config(CONFIGS / "recommend.toml").histories.epochs > 1
    wrong = tmp_path / "wrong.toml"
    wrong.write_text((CONFIGS / "recommend.toml").read_text().replace("id_dropout", "id_dropped"))
    with pytest.raises(ConfigError, match="id_dropped"):
        read_recommend_config(wrong)


def _vectors(run: Path) -> np.ndarray:
    return load_file(run / VECTORS)["vectors"]
