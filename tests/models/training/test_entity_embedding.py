"""A classifier on an encoder without token types, such as MPNet: it trains, teaches, and is not exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import MPNetConfig, MPNetModel

from models.bundle import TOKENIZER
from models.data.sources import read_validation
from models.export.classification import export_classifier
from models.networks.encoder import Classifier, from_pretrained, load_base_encoder
from models.networks.student import make_student
from models.tasks import SENTIMENT
from models.text.encoding import collate
from models.text.tokenizer import Tokenizer
from models.training.classification import load_run, load_weights, train_classifier
from models.training.trainer import parameter_groups
from tests.models.conftest import CONFIG
from tests.support.tiny_bundle import PIECES, write_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny MPNet with random weights."""
    folder = tmp_path_factory.mktemp("mpnet")
    torch.manual_seed(3)
    config = MPNetConfig(
        vocab_size=len(PIECES),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=514,
        initializer_range=0.1,
    )
    MPNetModel(config).save_pretrained(folder)
    write_tokenizer(folder / TOKENIZER)
    return folder


@pytest.fixture(scope="module")
def teacher(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_classifier(CONFIG, str(base), data, tmp_path_factory.mktemp("teacher"))


def logits(network: Classifier, tokenizer: Tokenizer, rows: list[tuple[str, str | None]]) -> torch.Tensor:
    batch = collate([tokenizer.encode(*row) for row in rows], tokenizer.pad_id)
    with torch.inference_mode():
        answers: torch.Tensor = network(*map(torch.from_numpy, (batch.ids, batch.mask, batch.token_types)))
    return answers


def test_a_new_classifier_computes_what_the_encoder_computes(base: Path) -> None:
    network = from_pretrained(str(base), SENTIMENT).eval()
    ids = torch.tensor([[0, 9, 12, 30, 2], [0, 14, 2, 1, 1]])
    mask = (ids != 1).long()
    states = network.states(ids, mask, torch.tensor([[0, 1, 0, 0, 0], [0, 1, 0, 0, 0]]))
    with torch.inference_mode():
        plain = network.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(states[-1][mask.bool()], plain[mask.bool()])
    assert len(states) == 3


def test_it_learns_sentiment_towards_an_entity_and_is_read_back(teacher: Path, data: Path) -> None:
    network = load_weights(teacher, load_run(teacher), SENTIMENT)
    tokenizer = Tokenizer(teacher / TOKENIZER, 64)
    for dataset in CONFIG.datasets[:2]:
        rows = read_validation(data, dataset)
        answers = logits(network, tokenizer, [(row.text, row.entity) for row in rows]).argmax(dim=-1)
        right = [SENTIMENT.labels[index] == row.label for index, row in zip(answers.tolist(), rows, strict=True)]
        assert sum(right) / len(right) > 0.9
    assert network.entity_embedding is not None
    assert network.entity_embedding.abs().max() > 0.01
    marked = logits(network, tokenizer, [("AB gains, CD falls", "AB")])
    with torch.no_grad():
        network.entity_embedding.zero_()
    assert not torch.allclose(marked, logits(network, tokenizer, [("AB gains, CD falls", "AB")]), atol=1e-3)


def test_it_neither_becomes_a_bundle_nor_lends_layers_to_a_student(teacher: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(ValueError, match="can only teach"):
        export_classifier(teacher, data, out, "1.0.0", "mixed", teacher=None, log=lambda line: None)
    assert not list(tmp_path.iterdir())
    network = load_weights(teacher, load_run(teacher), SENTIMENT)
    with pytest.raises(ValueError, match="can only teach"):
        make_student(network, (0,), [])


def test_what_all_layers_share_learns_like_the_embeddings_and_the_mark_of_an_entity_like_the_head(base: Path) -> None:
    config = replace(CONFIG, encoder_rate=1.0, head_rate=5.0, layer_decay=0.5)
    network = from_pretrained(str(base), SENTIMENT)
    rates = {parameter: group["lr"] for group in parameter_groups(network, config) for parameter in group["params"]}
    named = dict(network.named_parameters())
    assert rates[named["encoder.encoder.relative_attention_bias.weight"]] == 0.25
    assert rates[named["encoder.encoder.layer.1.attention.attn.q.weight"]] == 1.0
    assert rates[named["entity_embedding"]] == 5.0
    frozen = from_pretrained(str(base), SENTIMENT)
    parameter_groups(frozen, replace(config, frozen_layers=1))
    learning = {name for name, parameter in frozen.named_parameters() if parameter.requires_grad}
    assert "encoder.encoder.relative_attention_bias.weight" not in learning
    assert {"entity_embedding", "encoder.encoder.layer.1.output.dense.weight"} <= learning


def test_other_networks_need_two_token_types(base: Path) -> None:
    with pytest.raises(ValueError, match="fewer than two token types"):
        load_base_encoder(str(base))
