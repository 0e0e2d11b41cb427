"""A base encoder from a bundle: transformers loads it, it computes what the bundle computes, and it can be trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

from models.bundle import TOKENIZER, Bundle, load_bundle
from models.export.base import export_base
from models.networks.base_encoder import BASE_FILES, BaseEncoderError, check_base_encoder
from models.networks.encoder import Classifier, load_base_encoder
from models.networks.graph_network import load_graph_classifier
from models.networks.torch_runtime import TorchRuntime
from models.runtime.onnx import OnnxRuntime
from models.tasks import SENTIMENT
from models.text.encoding import collate
from models.text.tokenizer import Tokenizer
from models.training.classification import load_run, load_weights
from service.cli.main import app
from tests.models.conftest import CONFIG
from tests.support.tiny_bundle import tiny_bundle

TEXTS = ("Acme gains 3%", "利润下跌", "up http://a.b/c down", "flat")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture(scope="module")
def exported(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base encoder of the bundle."""
    folder = tmp_path_factory.mktemp("exported") / "base"
    export_base(bundle, folder)
    return folder


def heed(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_a_base_encoder_has_the_layout_of_transformers(bundle: Bundle, exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {*BASE_FILES, "tokenizer_config.json"}
    check_base_encoder(str(exported))
    config = json.loads((exported / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("bert", ["BertModel"])
    assert config["pad_token_id"] == Tokenizer.from_bundle(bundle).pad_id
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert (tokenizer.pad_token, tokenizer.cls_token, tokenizer.model_max_length) == ("<pad>", "<s>", 512)
    expected = Tokenizer.from_bundle(bundle).encode(TEXTS[2]).ids[1:-1].tolist()
    assert tokenizer(TEXTS[2], add_special_tokens=False)["input_ids"] == expected


def test_a_base_encoder_computes_what_the_bundle_computes(bundle: Bundle, exported: Path) -> None:
    tokenizer = Tokenizer.from_bundle(bundle)
    batch = collate([tokenizer.encode(text) for text in TEXTS], tokenizer.pad_id)
    encoder, (reference, _) = load_base_encoder(str(exported)), load_graph_classifier(bundle.graph)
    inputs = [torch.from_numpy(array) for array in (batch.ids, batch.mask, batch.token_types)]
    network = Classifier(encoder, encoder.config.hidden_size, len(SENTIMENT.labels)).eval()
    network.head.load_state_dict(reference.head.state_dict())
    with torch.inference_mode():
        layers = zip(network.states(*inputs), reference.states(*inputs), strict=True)
        for states, expected in layers:
            mask = batch.mask.astype(bool)
            np.testing.assert_allclose(states.numpy()[mask], expected.numpy()[mask], atol=1e-5)
    np.testing.assert_allclose(TorchRuntime(network).run(batch), OnnxRuntime(bundle.graph).run(batch), atol=0.1)


def toml(content: dict[str, Any]) -> Iterator[str]:
    tables = content.pop("datasets")
    yield from (f"{name} = {json.dumps(value)}" for name, value in content.items())
    for table in tables:
        yield "[[datasets]]"
        yield from (f"{name} = {json.dumps(value)}" for name, value in table.items() if value is not None)


@pytest.mark.slow
def test_a_model_is_trained_from_the_base_encoder_of_a_bundle(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    base, out, config = tmp_path / "base", tmp_path / "run", tmp_path / "config.toml"
    config.write_text("\n".join(toml(asdict(replace(CONFIG, epochs=0.2)))), encoding="utf-8")
    code, output = heed("base", bundle.path, "--out", base)
    assert (code, output.count("\n")) == (0, 1)
    assert output.startswith(f"Wrote {base}: 2 layers of width 32")
    code, output = heed("train", "sentiment", "--config", config, "--base", base, "--data", data, "--out", out)
    assert code == 0, output
    network = load_weights(out, load_run(out), SENTIMENT)
    before = load_base_encoder(str(base)).state_dict()
    changes = [float((value - before[name]).abs().max()) for name, value in network.encoder.state_dict().items()]
    assert 0 < max(changes) < 0.1
    assert len((out / TOKENIZER).read_text(encoding="utf-8")) > 0


def test_an_existing_folder_with_files_is_left_alone(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(BaseEncoderError, match="exists already"):
        export_base(bundle, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "notes.txt").unlink()
    export_base(bundle, tmp_path)
    check_base_encoder(str(tmp_path))


def test_a_folder_without_a_file_is_no_base_encoder(bundle: Bundle, exported: Path, tmp_path: Path) -> None:
    for name in BASE_FILES:
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    (tmp_path / "model.safetensors").unlink()
    faults = {
        str(tmp_path): "it lacks model.safetensors",
        str(tmp_path / "none"): "there is no base encoder",
        str(exported / TOKENIZER): "there is no base encoder",
        str(bundle.path): f"heed base {bundle.path} --out BASE",
    }
    for folder, message in faults.items():
        with pytest.raises(BaseEncoderError) as caught:
            check_base_encoder(folder)
        assert message in str(caught.value)
