from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.data.classification import Dataset, Example
from models.networks.encoder import Classifier, SourceBias
from models.tasks import SENTIMENT
from models.text.tokenizer import Tokenizer
from models.training import classification_loss
from models.training.classification_batches import TrainingRow
from models.training.classification_loss import LossWeights, SupervisedObjective, begin_source_bias, split_by_length
from models.training.trainer import DeviceCollator, choose_device
from tests.models.conftest import THREE_LABELS, TWO_LABELS
from tests.support.tiny_bundle import PIECES, write_tokenizer
from tests.support.tiny_networks import tiny_encoder

pytestmark = pytest.mark.slow

ALL = (True, True, True)
TEXTS = ("A", "A falls", "A gains in the end", "it is what it is and stays that way for a while")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    write_tokenizer(tmp_path / "tokenizer.json")
    return Tokenizer(tmp_path / "tokenizer.json", 64)


@pytest.fixture
def model() -> Classifier:
    return Classifier(tiny_encoder(3, len(PIECES)), 32, 3, dropout=0.0).eval()


def rows(tokenizer: Tokenizer) -> list[TrainingRow]:
    targets = (True, False, False)
    return [TrainingRow(tokenizer.encode(text), targets, ALL) for text in TEXTS]


def objective(model: Classifier, tokenizer: Tokenizer, agreement: float = 0.0) -> SupervisedObjective:
    return SupervisedObjective(model, DeviceCollator(tokenizer, choose_device()), LossWeights(agreement=agreement))


def test_a_loss_does_not_depend_on_the_parts_that_rows_are_run_in(
    model: Classifier, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = objective(model, tokenizer)(rows(tokenizer))
    assert len(list(split_by_length(rows(tokenizer)))) > 1
    monkeypatch.setattr(classification_loss, "MAX_PADDING", 100.0)
    together = objective(model, tokenizer)(rows(tokenizer))
    torch.testing.assert_close(apart, together)


def test_twins_that_are_read_alike_add_nothing_to_the_agreement_and_others_do(
    model: Classifier, tokenizer: Tokenizer
) -> None:
    plain = rows(tokenizer)[:1]
    same = [replace(plain[0], twin=plain[0].tokens)]
    other = [replace(plain[0], twin=tokenizer.encode("B"))]
    unweighed, weighed = (float(objective(model, tokenizer, weight)(same).detach()) for weight in (0.0, 5.0))
    assert weighed == pytest.approx(unweighed, abs=1e-6)
    unweighed, weighed = (float(objective(model, tokenizer, weight)(other).detach()) for weight in (0.0, 5.0))
    assert weighed > unweighed


def test_a_bias_begins_with_the_shares_of_the_labels_that_people_gave() -> None:
    news = Dataset("news", "en", THREE_LABELS, "MIT")
    reviews = Dataset("reviews", "en", TWO_LABELS, "MIT")
    posts = Dataset("posts", "zh", ("negative", "not_negative"), "none")
    facts = Dataset("facts", "en", THREE_LABELS, "MIT", assumed="neutral")
    made = Dataset("made", "en", THREE_LABELS, "own work", fillings=3)
    labels = {
        news: ["neutral"] * 79 + ["positive"] * 9 + ["negative"] * 9,
        reviews: ["negative"] * 9,
        made: ["neutral"],
    }
    rows = [
        Example("A", label, None, source.name, source.language, source.labels)
        for source, given in labels.items()
        for label in given
    ]
    sources = begin_source_bias([news, reviews, posts, facts, made], SENTIMENT, rows)
    assert sources.choices.bool().tolist() == [[True] * 3, [True, False, True], [True] * 3, [False] * 3, [False] * 3]
    news_bias, reviews_bias, *others = sources.centered().tolist()
    assert news_bias == pytest.approx([-math.log(8) / 3, 2 * math.log(8) / 3, -math.log(8) / 3])
    assert reviews_bias == pytest.approx([math.log(10) / 2, 0, -math.log(10) / 2])
    assert others == [[0.0] * 3] * 3
    torch.testing.assert_close(sources.mean()[1], torch.tensor(math.log(8) / 3))


def test_a_source_has_a_bias_for_its_labels_alone_and_the_mean_goes_into_the_head(
    model: Classifier, tokenizer: Tokenizer
) -> None:
    choices = torch.tensor([[True] * 3, [True, False, True], [True] * 3])
    sources = SourceBias(choices, torch.zeros(3, 3))
    sources.bias.data = torch.tensor([[3.0, 0.0, 0.0], [1.0, 9.0, 0.0], [0.0, 0.0, 0.0]])
    biases = sources(torch.tensor([0, 1, 2]))
    torch.testing.assert_close(biases, torch.tensor([[2.0, -1.0, -1.0], [0.5, 0.0, -0.5], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(sources.mean(), torch.tensor([2.5 / 3, -0.5, -0.5]))

    inputs = DeviceCollator(tokenizer, choose_device())([row.tokens for row in rows(tokenizer)])
    model.sources = sources
    before = model(inputs.ids, inputs.mask, inputs.types)
    model.finish()
    assert model.sources is None
    torch.testing.assert_close(model(inputs.ids, inputs.mask, inputs.types), before)
    assert not any("sources" in name for name in model.state_dict())


def test_the_bias_of_a_source_takes_up_what_its_labels_prefer(model: Classifier, tokenizer: Tokenizer) -> None:
    model.sources = SourceBias(torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3))
    loss = objective(model, tokenizer)([replace(row, source=1) for row in rows(tokenizer)])
    torch.autograd.backward(loss)
    gradient = model.sources.bias.grad
    assert gradient is not None
    assert not gradient[0].any()
    assert gradient[1, 0] < 0 < gradient[1, 1]


def test_a_teachers_answer_pulls_the_answer_to_a_text_and_to_its_twin(model: Classifier, tokenizer: Tokenizer) -> None:
    collator = DeviceCollator(tokenizer, choose_device())
    inputs = collator([row.tokens for row in rows(tokenizer)[:1]])
    own = model(inputs.ids, inputs.mask, inputs.types).log_softmax(dim=-1).detach().numpy()[0]
    unlabelled = replace(rows(tokenizer)[0], targets=(False,) * 3)
    learn = SupervisedObjective(model, collator, LossWeights(labels=0.0))
    assert float(learn([unlabelled]).detach()) == 0
    assert float(learn([replace(unlabelled, answer=own)]).detach()) == pytest.approx(0.0, abs=1e-6)
    other = np.log(np.asarray([0.98, 0.01, 0.01], np.float32))
    assert float(learn([replace(unlabelled, answer=other)]).detach()) > 0.1
    twin = replace(unlabelled, answer=own, twin=tokenizer.encode("B"))
    assert float(learn([twin]).detach()) > 1e-4
