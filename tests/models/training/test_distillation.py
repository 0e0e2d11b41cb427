from __future__ import annotations

import gzip
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.bundle import TOKENIZER, Bundle, load_bundle
from models.data.classification import Dataset
from models.evaluation.classification import evaluate_classifier, metrics_of, predict_validation, report_dataset
from models.export.card_classification import compare_with_teacher
from models.export.classification import export_classifier
from models.export.parity import uncalibrated
from models.graph.builder import EMBEDDING_LEVELS
from models.graph.names import WORD_EMBEDDINGS
from models.graph.writer import quantize
from models.networks.encoder import encoder_layers
from models.networks.student import make_student
from models.networks.torch_runtime import TorchRuntime
from models.tasks import SENTIMENT, TASKS
from models.text.encoding import Encoding
from models.text.tokenizer import Tokenizer
from models.training.classification import CONFIGS, load_run, load_weights
from models.training.classification_batches import TrainingRow
from models.training.classification_loss import labelled_loss
from models.training.distillation import (
    DistillationConfig,
    DistillationObjective,
    distill_classifier,
    parse_distillation,
    read_distillation_config,
    swap_tokens,
)
from models.training.losses import hidden_state_loss, soft_target_loss
from models.training.trainer import WEIGHTS, ConfigError, DeviceCollator, Inputs, choose_device
from tests.models.conftest import CONFIG, WORDS

pytestmark = pytest.mark.slow

EIGHT = [
    Encoding(np.arange(start, start + 8), np.zeros(8, np.int64), truncated=False, language="en") for start in (4, 12)
]
TEXTS = Dataset("headlines", "en", (), "MIT")
STUDENT = DistillationConfig(
    layers=(1,),
    temperature=2.0,
    labels_weight=0.3,
    states_weight=1.0,
    corrupted=0.3,
    corrupted_tokens=0.15,
    compiled=False,
    texts=(TEXTS,),
    training=replace(CONFIG, epochs=3, layer_decay=1.0, freeze_embeddings=True),
)


def one_hot(label: int) -> tuple[bool, ...]:
    return tuple(index == label for index in range(3))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    with gzip.open(folder / "headlines.txt.gz", "wt", encoding="utf-8") as lines:
        lines.writelines(f"XY{number} {WORDS[label][0]}\n" for number in range(20) for label in WORDS)
        lines.write("\n")
    return folder


@pytest.fixture(scope="module")
def student(run: Path, data: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distill_classifier(STUDENT, run, data, texts, tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def teacher(run: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundles") / "teacher"
    return export_classifier(run, data, out, "1.0.0", "fp32", teacher=None, log=lambda line: None)


def test_a_student_of_fewer_layers_is_as_accurate_and_its_card_describes_it(
    student: Path, teacher: Bundle, data: Path, tmp_path: Path
) -> None:
    bundle = export_classifier(
        student, data, tmp_path / "small", "2.0.0", "int8", teacher=teacher, log=lambda line: None
    )
    figures = {(metric.dataset, metric.name): metric.value for metric in bundle.metrics}
    assert figures["news", "accuracy"] > 0.9
    assert figures["companies", "accuracy"] > 0.9
    assert bundle.graph.stat().st_size < teacher.graph.stat().st_size
    assert load_bundle(bundle.path).digest == bundle.digest
    assert metrics_of("small", evaluate_classifier(bundle, data)) == bundle.metrics
    card = (bundle.path / "CARD.md").read_text(encoding="utf-8")
    assert "its 1 layers started as the layers 2 of" in card
    assert "heed distill sentiment" in card
    assert "| headlines | en | MIT | none |  | 1 | all texts |" in card
    assert "headlines" in {source.name for source in bundle.sources}


def test_a_student_of_known_answers_never_runs_its_teacher(
    run: Path, data: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def lookup(text: str, entity: str | None) -> NDArray[np.float32] | None:
        asked.append((text, entity))
        return None if entity else np.log(np.asarray([0.1, 0.8, 0.1], np.float32))

    monkeypatch.setattr("models.training.distillation.DistillationObjective", None)
    config = replace(STUDENT, labels_weight=0.0, training=replace(STUDENT.training, twins=0.2, reading=1))
    student = distill_classifier(config, run, data, texts, tmp_path / "student", answers=lookup)
    network = load_weights(student, load_run(student), SENTIMENT)
    tokenizer = Tokenizer(student / TOKENIZER, 64, 1)
    inputs = DeviceCollator(tokenizer, choose_device())([tokenizer.encode("XY1 falls")])
    assert int(network(inputs.ids, inputs.mask, inputs.types).argmax()) == 1
    assert any(entity for _, entity in asked)


def test_the_card_compares_the_student_with_its_teacher(teacher: Bundle) -> None:
    worse = tuple(replace(metric, value=metric.value / 2) for metric in teacher.metrics)
    text = compare_with_teacher(replace(teacher, metrics=worse), teacher)
    values = [metric.value for metric in teacher.metrics if metric.name == "macro_f1"]
    for name, value in zip((*(row.name for row in CONFIG.datasets), "mean"), (*values, sum(values) / 3), strict=True):
        assert f"| {name} | {value:.3f} | {value / 2:.3f} | -{value / 2:.3f} |" in text


def test_each_layer_imitates_the_layer_it_started_from(run: Path) -> None:
    """An untrained student of all layers, without quantisation, equals its teacher."""
    network = load_weights(run, load_run(run), TASKS["sentiment"])
    config = replace(STUDENT, layers=(0, 1), labels_weight=0.0)
    collator = DeviceCollator(Tokenizer(run / TOKENIZER, 64), torch.device("cpu"))
    rows = [TrainingRow(tokens, (False,) * 3, (False,) * 3) for tokens in EIGHT]
    assert float(DistillationObjective(deepcopy(network), network, config, collator)(rows).detach()) == pytest.approx(
        0, abs=1e-6
    )
    damaged = deepcopy(network)
    with torch.no_grad():
        damaged.head.weight.mul_(-1)
    assert float(DistillationObjective(damaged, network, config, collator)(rows).detach()) > 0.1


def test_only_words_of_some_texts_are_swapped_for_words_of_the_batch() -> None:
    torch.manual_seed(0)
    ids = torch.cat([torch.zeros(400, 1, dtype=torch.long), torch.arange(4, 2404).reshape(400, 6)], dim=1)
    ids[:, 4], ids[:, 5:] = 2, 1  # the last token, and padding
    mask, types = (ids != 1).long(), torch.zeros_like(ids)
    types[:, 2] = 1
    swapped, unchanged = swap_tokens(Inputs(ids, mask, types), share=0.5, tokens=0.4)
    moved = swapped != ids
    assert not moved[:, [0, 2, 4, 5, 6]].any()
    assert not moved[unchanged].any()
    assert 160 < len(unchanged) < 240
    assert 0.3 < float(moved[:, [1, 3]].float().sum()) / (2 * (400 - len(unchanged))) < 0.5
    assert set(swapped[moved].tolist()) <= set(ids[:, [1, 3]].flatten().tolist())


def test_texts_with_swapped_words_lose_their_label(run: Path) -> None:
    network = load_weights(run, load_run(run), TASKS["sentiment"])
    collator = DeviceCollator(Tokenizer(run / TOKENIZER, 64), torch.device("cpu"))
    rows = {label: [TrainingRow(tokens, one_hot(label), (True,) * 3) for tokens in EIGHT] for label in (0, 2)}
    for share, matters in ((0.0, True), (1.0, False)):
        config = replace(STUDENT, layers=(0, 1), corrupted=share, corrupted_tokens=0.0)
        first, second = (
            float(DistillationObjective(deepcopy(network).eval(), network, config, collator)(labelled).detach())
            for labelled in rows.values()
        )
        assert (first != second) is matters


def test_the_run_records_the_remaining_layers_of_the_base(student: Path) -> None:
    assert load_run(student).layers == (1,)
    assert len(encoder_layers(load_weights(student, load_run(student), TASKS["sentiment"]))) == 1


def test_a_student_can_be_a_teacher(student: Path, data: Path, texts: Path, tmp_path: Path) -> None:
    config = replace(STUDENT, layers=(0,), training=replace(STUDENT.training, epochs=0.1))
    assert load_run(distill_classifier(config, student, data, texts, tmp_path)).layers == (1,)


def test_a_student_learns_from_its_teacher_without_labels(run: Path, data: Path, texts: Path, tmp_path: Path) -> None:
    config = replace(STUDENT, labels_weight=0.0)
    out = distill_classifier(config, run, data, texts, tmp_path)
    task = TASKS["sentiment"]
    runtime = TorchRuntime(load_weights(out, load_run(out), task))
    (rows,) = predict_validation(runtime, Tokenizer(out / TOKENIZER, 64), task, data, CONFIG.datasets[:1])
    assert report_dataset(rows, uncalibrated(rows, 3), task).accuracy > 0.9


def test_distillation_does_not_change_the_teacher(run: Path, data: Path, texts: Path, tmp_path: Path) -> None:
    before = (run / WEIGHTS).read_bytes()
    distill_classifier(replace(STUDENT, training=replace(STUDENT.training, epochs=0.1)), run, data, texts, tmp_path)
    assert (run / WEIGHTS).read_bytes() == before


def test_a_student_is_trained_with_the_word_embeddings_of_its_8_bit_graph(student: Path, run: Path) -> None:
    student_words, teacher_words = (
        load_weights(out, load_run(out), TASKS["sentiment"]).get_parameter(WORD_EMBEDDINGS) for out in (student, run)
    )
    whole, scale = quantize(teacher_words.detach().numpy(), axis=1, levels=EMBEDDING_LEVELS)
    np.testing.assert_allclose(student_words.detach().numpy(), whole * scale[:, None], atol=1e-7)


def test_a_student_has_no_dropout(run: Path) -> None:
    network = load_weights(run, load_run(run), TASKS["sentiment"]).train()
    ids = torch.arange(4, 20).reshape(2, 8)
    mask, types = torch.ones_like(ids), torch.zeros_like(ids)
    network = make_student(network, (0,), [(ids, mask, types)]).train()
    assert torch.equal(network(ids, mask, types), network(ids, mask, types))


def test_the_soft_target_loss_is_zero_for_equal_logits_and_independent_of_temperature() -> None:
    target = torch.tensor([[2.0, 0.0, -1.0]])
    assert float(soft_target_loss(target, target, 2.0)) == pytest.approx(0, abs=1e-6)
    other = target + torch.tensor([[0.05, 0.0, 0.0]])
    warm, hot = (float(soft_target_loss(other, target, temperature)) for temperature in (20.0, 40.0))
    assert warm == pytest.approx(hot, rel=0.1)
    assert warm > 0


def test_padding_does_not_count_in_the_hidden_state_loss() -> None:
    student, teacher = torch.ones(1, 3, 2), torch.full((1, 3, 2), 2.0)
    mask = torch.tensor([[1, 1, 0]])
    assert float(hidden_state_loss(student, teacher, mask)) == pytest.approx(0.25)
    student[0, 2] = 99.0
    assert float(hidden_state_loss(student, teacher, mask)) == pytest.approx(0.25)


def test_a_text_without_a_label_does_not_change_the_labelled_loss(run: Path) -> None:
    tokens = Tokenizer(run / TOKENIZER, 64).encode("X falls")
    labelled, plain_text = (
        TrainingRow(tokens, one_hot(0), (True,) * 3),
        TrainingRow(tokens, (False,) * 3, (False,) * 3),
    )
    logits = torch.tensor([[1.0, 0.0, 0.0], [0.0, 5.0, 0.0]], requires_grad=True)
    loss = labelled_loss(logits, [labelled, plain_text])
    assert float(loss.detach()) == pytest.approx(float(labelled_loss(logits[:1], [labelled]).detach()))
    torch.autograd.backward(loss)
    assert logits.grad is not None
    assert not logits.grad[1].any()
    assert float(labelled_loss(logits[1:], [plain_text]).detach()) == 0


def test_the_shipped_configuration_is_valid_and_a_missing_section_is_named() -> None:
    shipped = read_distillation_config(CONFIGS / "sentiment-student.toml")
    assert len(shipped.layers) == 8
    assert shipped.texts
    with pytest.raises(ConfigError, match="distillation"):
        parse_distillation({"task": "sentiment", "datasets": [], "texts": []})
