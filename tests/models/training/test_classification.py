from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from models.bundle import load_bundle
from models.evaluation.classification import evaluate_classifier, metrics_of
from models.export.classification import export_classifier
from models.export.parity import ParityError
from models.prediction.calibration_fit import load_predictions
from models.training.classification import (
    CONFIGS,
    LEFT_OUT,
    load_run,
    parse_config,
    read_config,
    train_classifier,
)
from models.training.losses import agreement_loss, expectation_regularization, masked_cross_entropy
from models.training.trainer import CHECKPOINT, WEIGHTS, ConfigError, Trainer
from tests.models.conftest import CONFIG

pytestmark = pytest.mark.slow

FIRST = torch.tensor([[True, False, False]])


def test_a_two_label_row_changes_only_its_two_labels() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    label_choices = torch.tensor([[True, False, True], [True, True, True]])
    zeros = torch.zeros(2)
    torch.autograd.backward(masked_cross_entropy(logits, FIRST.expand(2, 3), label_choices, zeros, zeros))
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([-0.25, 0.0, 0.25])
    assert logits.grad[1].tolist() == pytest.approx([-1 / 3, 1 / 6, 1 / 6])


def test_two_label_rows_match_the_expected_share_of_the_third_label_on_average() -> None:
    label_choices = torch.tensor([[True, False, True]] * 2 + [[True, True, True]])
    share = torch.tensor([0.25, 0.25, 0.0])
    sure, half, free = [0.0, -20.0, 0.0], [0.0, math.log(2.0), 0.0], [0.0, 9.0, 0.0]
    assert float(expectation_regularization(torch.tensor([sure, half, free]), label_choices, share)) == pytest.approx(
        0, abs=1e-6
    )
    assert float(expectation_regularization(torch.tensor([half, half, free]), label_choices, share)) > 0.05
    assert float(expectation_regularization(torch.tensor([sure, sure, free]), label_choices, share)) > 0.05
    assert float(expectation_regularization(torch.tensor([free]), label_choices[2:], share[2:])) == 0


def test_a_row_that_is_one_of_two_labels_pushes_neither_above_the_other() -> None:
    logits = torch.tensor([[1.0, 0.0, 0.5]], requires_grad=True)
    zero = torch.zeros(1)
    targets = torch.tensor([[False, True, True]])
    torch.autograd.backward(masked_cross_entropy(logits, targets, torch.ones(1, 3, dtype=torch.bool), zero, zero))
    assert logits.grad is not None
    wrong, *right = logits.grad[0].tolist()
    scores = logits.detach().softmax(dim=-1)[0]
    assert wrong == pytest.approx(float(scores[0]), abs=1e-6)
    assert right[0] / right[1] == pytest.approx(float(scores[1] / scores[2]), abs=1e-5)


def test_agreement_is_zero_for_equal_answers_and_symmetric() -> None:
    one, other = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    assert float(agreement_loss(one, one + 3.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(agreement_loss(one, other)) == pytest.approx(float(agreement_loss(other, one)))
    assert float(agreement_loss(one, other)) > 0.1


def test_smoothing_and_bootstrapping_lower_the_loss_of_a_confident_wrong_prediction() -> None:
    logits = torch.tensor([[0.0, 0.0, 4.0]])
    label_choices = torch.ones(1, 3, dtype=torch.bool)
    plain, smooth, boot = (
        masked_cross_entropy(logits, FIRST, label_choices, torch.tensor([s]), torch.tensor([b]))
        for s, b in ((0, 0), (0.3, 0), (0, 0.3))
    )
    assert plain > smooth > boot


def test_training_learns_a_plain_task_and_the_served_graph_solves_it(run: Path, data: Path, tmp_path: Path) -> None:
    bundle = export_classifier(run, data, tmp_path / "sentiment", "1.2.3", "int8", teacher=None, log=lambda line: None)
    figures = {(metric.dataset, metric.name): metric.value for metric in bundle.metrics}
    assert figures["news", "accuracy"] > 0.9
    assert figures["companies", "accuracy"] > 0.9
    assert figures["reviews_zh", "accuracy"] > 0.9
    assert metrics_of("sentiment", evaluate_classifier(bundle, data)) == bundle.metrics
    assert load_bundle(bundle.path).digest == bundle.digest
    assert "news" in (bundle.path / "CARD.md").read_text(encoding="utf-8")


def test_a_quantised_run_without_a_source_is_measured_on_it_and_tells_its_card_and_calibration(
    base: Path, data: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, epochs=3, quantized=True, source_bias=True, twins=0.2, agreement=1.0, reading=1)
    left_out = train_classifier(config, str(base), data, tmp_path / "left_out", without=["comp"])
    (unseen,) = load_predictions(left_out / LEFT_OUT)
    assert (unseen.dataset, unseen.logits.shape) == ("companies", (45, 3))
    assert unseen.has_entity.all()
    assert "companies" not in {dataset.name for dataset in load_run(left_out).config.datasets}

    run = train_classifier(config, str(base), data, tmp_path / "run")
    assert not (run / LEFT_OUT).exists()
    assert any(name.endswith("log_step") for name in load_file(run / WEIGHTS))
    bundles = [
        export_classifier(run, data, tmp_path / name, "1.0.0", "int8", None, lambda line: None, folders)
        for name, folders in (("alone", ()), ("told", (left_out,)))
    ]
    cards = [(bundle.path / "CARD.md").read_text(encoding="utf-8") for bundle in bundles]
    assert ["## Sources left out" in card for card in cards] == [False, True]
    assert bundles[0].calibration != bundles[1].calibration
    assert bundles[1].reading == 1


def test_a_run_begins_with_the_weights_of_another(base: Path, data: Path, tmp_path: Path) -> None:
    rounded = replace(CONFIG, epochs=1, quantized=True)
    first = train_classifier(rounded, str(base), data, tmp_path / "first")
    still = replace(rounded, encoder_rate=0.0, head_rate=0.0)
    second = train_classifier(still, str(base), data, tmp_path / "second", start=first)
    before, after = load_file(first / WEIGHTS), load_file(second / WEIGHTS)
    assert all(torch.equal(before[name], after[name]) for name in before | after)
    with pytest.raises(ConfigError, match="another rounding"):
        train_classifier(replace(CONFIG, epochs=1), str(base), data, tmp_path / "third", start=first)


def test_an_export_without_parity_writes_no_bundle(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lossy(value: NDArray[np.float32], axis: int, levels: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        return np.zeros(value.shape, np.int8), np.ones(value.shape[1 - axis], np.float32)

    monkeypatch.setattr("models.graph.builder.quantize", lossy)
    with pytest.raises(ParityError):
        export_classifier(run, data, tmp_path / "sentiment", "1", "mixed", teacher=None, log=lambda line: None)
    assert not list(tmp_path.iterdir())


def test_a_killed_run_resumes_to_the_same_weights(
    base: Path, data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step = Trainer.train_step

    def killed_step(self: Trainer, rows: list[object]) -> float:
        if self.step == 13:
            raise KeyboardInterrupt
        return train_step(self, rows)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", killed_step)
        with pytest.raises(KeyboardInterrupt):
            train_classifier(CONFIG, str(base), data, tmp_path)
    assert (tmp_path / CHECKPOINT).exists()
    assert not (tmp_path / WEIGHTS).exists()
    train_classifier(CONFIG, str(base), data, tmp_path)
    uninterrupted, resumed = load_file(run / WEIGHTS), load_file(tmp_path / WEIGHTS)
    for name, tensor in uninterrupted.items():
        torch.testing.assert_close(resumed[name], tensor, msg=name)


def test_frozen_word_embeddings_do_not_change(base: Path, data: Path, tmp_path: Path) -> None:
    train_classifier(replace(CONFIG, epochs=1, freeze_embeddings=True), str(base), data, tmp_path)
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / WEIGHTS)
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(before[name], after[f"encoder.{name}"])
    assert not torch.equal(
        before["encoder.layer.0.output.dense.weight"], after["encoder.encoder.layer.0.output.dense.weight"]
    )


def test_frozen_layers_do_not_change(base: Path, data: Path, tmp_path: Path) -> None:
    train_classifier(replace(CONFIG, epochs=1, frozen_layers=1), str(base), data, tmp_path)
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / WEIGHTS)
    for name in ("embeddings.position_embeddings.weight", "encoder.layer.0.output.dense.weight"):
        assert torch.equal(before[name], after[f"encoder.{name}"])
    name = "encoder.layer.1.output.dense.weight"
    assert not torch.equal(before[name], after[f"encoder.{name}"])


def test_the_shipped_configuration_is_valid() -> None:
    config = read_config(CONFIGS / "sentiment.toml")
    assert {dataset.name for dataset in config.datasets} >= {"sentfin", "sentfin_entities", "finfe_zh", "reviews_zh"}


def test_a_missing_or_unknown_field_is_named() -> None:
    with pytest.raises(ConfigError, match="seed"):
        parse_config({"task": "sentiment", "datasets": []})
    with pytest.raises(ConfigError, match="pace"):
        parse_config({"pace": 1, "datasets": []})
