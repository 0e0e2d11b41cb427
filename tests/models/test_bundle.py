from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load as load_tensors

from models.bundle import (
    EMBEDDINGS,
    GRAPH,
    MANIFEST,
    BundleError,
    file_digest,
    find_external_locations,
    load_bundle,
    load_unverified,
    save_bundle,
)
from models.graph.builder import build_graph, save_graph
from models.graph.names import WORDS_INT8
from models.prediction.intent_head import load_bundle_heads, load_head, save_head
from models.prediction.reply_ranker import ReplySet, load_replies, save_replies
from models.prediction.tensor_file import ArtifactError
from models.text.tokenizer import Tokenizer
from tests.support.tiny_bundle import HEADS, tiny_bundle, tiny_intent_bundle, weights


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path)


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest, and update the digests of its files."""
    manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    change(manifest)
    manifest["files"] = {name: file_digest(bundle / name) for name in manifest["files"] if (bundle / name).is_file()}
    (bundle / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def expect_refused(bundle: Path, reason: str) -> None:
    with pytest.raises(BundleError, match=reason) as caught:
        load_bundle(bundle)
    assert "\n" not in str(caught.value)


def test_a_saved_bundle_loads_with_its_description(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    assert (loaded.name, loaded.version, loaded.task.name) == ("sentiment", "0.0.1", "sentiment")
    assert loaded.calibration["zh"].temperature == 1.5
    assert loaded.metrics[0].value == 0.5
    assert len(loaded.digest) == 64


def test_a_bundle_without_a_reading_reads_texts_as_sent(bundle: Path) -> None:
    assert "reading" not in json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    assert load_bundle(bundle).reading == 0
    assert Tokenizer.from_bundle(load_bundle(bundle)).reading == 0


def test_a_reading_is_saved_loaded_and_part_of_the_model(bundle: Path) -> None:
    before = load_bundle(bundle)
    (bundle / MANIFEST).unlink()
    after = save_bundle(bundle, replace(before, reading=1))
    assert (after.reading, load_unverified(bundle).reading, Tokenizer.from_bundle(after).reading) == (1, 1, 1)
    assert after.model_digest != before.model_digest


def test_the_encoder_digest_covers_the_reading_and_is_that_of_the_graph_without_one(bundle: Path) -> None:
    before = load_bundle(bundle)
    assert before.encoder_digest == file_digest(before.graph)
    (bundle / MANIFEST).unlink()
    assert save_bundle(bundle, replace(before, reading=1)).encoder_digest != before.encoder_digest


def test_heads_and_replies_of_texts_read_another_way_are_refused(tmp_path: Path) -> None:
    bundle = load_bundle(tiny_intent_bundle(tmp_path))
    head = next(iter(load_bundle_heads(bundle.path, bundle.encoder_digest).values()))
    (bundle.path / MANIFEST).unlink()
    other = save_bundle(bundle.path, replace(bundle, reading=1))
    save_head(head, tmp_path / "mine.head.safetensors")
    replies = ReplySet("mine", bundle.encoder_digest, ("yes",), np.ones((1, 1), np.float32))
    save_replies(replies, tmp_path / "mine.replies.safetensors")
    with pytest.raises(ArtifactError, match="another encoder"):
        load_head(tmp_path / "mine.head.safetensors", other.encoder_digest)
    with pytest.raises(ArtifactError, match="another encoder"):
        load_replies(tmp_path / "mine.replies.safetensors", other.encoder_digest)


@pytest.mark.parametrize("reading", [2, -1, "1", None, True, 1.5])
def test_an_unknown_reading_is_refused(bundle: Path, reading: Any) -> None:
    rewrite(bundle, lambda manifest: manifest.update(reading=reading))
    expect_refused(bundle, "reading .* is unknown")


@pytest.mark.parametrize(
    ("key", "value", "range_of_it"),
    [
        *(("temperature", value, "0.001 to 1000") for value in (float("nan"), float("inf"), 1e308, 0, "1", None, True)),
        *(("power", value, "-10 to 10") for value in (float("nan"), -11)),
        *(("bias", [value, 0, 0], "-100 to 100") for value in (float("-inf"), 101, 10**400)),
    ],
)
def test_a_calibration_outside_its_range_is_refused(bundle: Path, key: str, value: Any, range_of_it: str) -> None:
    rewrite(bundle, lambda manifest: manifest["calibration"]["zh"].update({key: value}))
    expect_refused(bundle, f"its {key} should be a number from {range_of_it}, not .*; export it again")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("name", value) for value in ("", " ", 7)),
        ("version", ""),
        *(("languages", value) for value in ([], [""], ["en", 3])),
        *(("max_tokens", value) for value in (0, -1, float("inf"), 1e400, "64")),
        ("metrics", [{"dataset": "d", "language": "en", "name": "n", "value": float("nan"), "command": "c"}]),
    ],
)
def test_a_manifest_with_an_empty_name_or_an_impossible_number_is_refused(bundle: Path, key: str, value: Any) -> None:
    rewrite(bundle, lambda manifest: manifest.update({key: value}))
    expect_refused(bundle, "its .* should be|it names no language")


def test_a_bundle_is_described_from_its_manifest_alone(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    (bundle / GRAPH).unlink()
    assert load_unverified(bundle) == loaded
    (bundle / MANIFEST).unlink()
    with pytest.raises(BundleError, match="no bundle at"):
        load_unverified(bundle)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    expect_refused(tmp_path, "no bundle at")


@pytest.mark.parametrize("name", [GRAPH, EMBEDDINGS])
def test_a_changed_byte_is_refused(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    expect_refused(bundle, f"{name} was changed")


def test_a_graph_reads_its_embeddings_from_a_separate_file(bundle: Path) -> None:
    assert list(find_external_locations((bundle / GRAPH).read_bytes())) == [EMBEDDINGS]
    (rows,) = [tensor for tensor in onnx.load(str(bundle / GRAPH)).graph.initializer if tensor.name == WORDS_INT8]
    assert rows.raw_data == (bundle / EMBEDDINGS).read_bytes()


def test_embeddings_outside_the_folder_are_refused(bundle: Path) -> None:
    shutil.copy(bundle / EMBEDDINGS, bundle.parent)
    model = onnx.load(str(bundle / GRAPH), load_external_data=False)
    (rows,) = [tensor for tensor in model.graph.initializer if tensor.name == WORDS_INT8]
    (location,) = [entry for entry in rows.external_data if entry.key == "location"]
    location.value = f"../{EMBEDDINGS}"
    (bundle / GRAPH).write_bytes(model.SerializeToString())
    rewrite(bundle, lambda manifest: None)
    expect_refused(bundle, f"{GRAPH} reads data from '../{EMBEDDINGS}', outside the bundle")


def test_graphs_of_two_models_cannot_share_a_folder(tmp_path: Path) -> None:
    save_graph(build_graph(weights(seed=1), HEADS, 1e-12, "int8"), tmp_path / GRAPH)
    with pytest.raises(ValueError, match="another model"):
        save_graph(build_graph(weights(seed=2), HEADS, 1e-12, "int8"), tmp_path / "other.onnx")


def test_a_missing_file_is_refused(bundle: Path) -> None:
    (bundle / GRAPH).unlink()
    expect_refused(bundle, f"{GRAPH} is missing")


def test_a_missing_label_is_refused(bundle: Path) -> None:
    rewrite(bundle, lambda manifest: manifest["labels"].remove("neutral"))
    expect_refused(bundle, "labels")


@pytest.mark.parametrize("name", ["weights.pkl", "weights.pt", "weights.bin", "run.py"])
def test_a_kind_of_file_that_can_run_code_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"\x80\x04.")
    expect_refused(bundle, f"{name} is not a kind of file that a bundle may hold")


def test_a_pickle_under_another_name_is_refused(bundle: Path) -> None:
    (bundle / "more.data").write_bytes(b"\x80\x04.")
    rewrite(bundle, lambda manifest: manifest["files"].update({"more.data": ""}))
    expect_refused(bundle, "pickle under another name")


@pytest.mark.parametrize("length", [0x280, 0x580])
def test_safetensors_with_a_header_length_like_the_start_of_a_pickle_are_accepted(bundle: Path, length: int) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    content = length.to_bytes(8, "little") + header.ljust(length) + bytes(4)
    assert load_tensors(content)["a"].shape == (1,)
    (bundle / "more.safetensors").write_bytes(content)
    digest = file_digest(bundle / "more.safetensors")
    rewrite(bundle, lambda manifest: manifest["files"].update({"more.safetensors": digest}))
    load_bundle(bundle)


def test_a_file_that_is_not_listed_is_refused(bundle: Path) -> None:
    (bundle / "more.json").write_text("{}")
    expect_refused(bundle, r"more\.json is not listed")


def test_a_link_out_of_the_folder_is_refused(bundle: Path) -> None:
    (bundle.parent / "card.md").write_text("other")
    (bundle / "CARD.md").unlink()
    (bundle / "CARD.md").symlink_to(bundle.parent / "card.md")
    expect_refused(bundle, "links out of the folder")


def test_hard_linked_embeddings_are_refused_for_that_reason_and_a_copy_is_accepted(bundle: Path) -> None:
    linked, copy = bundle.parent / "linked", bundle.parent / "copy"
    shutil.copytree(bundle, linked, copy_function=os.link)
    for folder in (linked, bundle):
        expect_refused(folder, f"{EMBEDDINGS} has hard links, so another path could change it; copy the folder")
    shutil.copytree(linked, copy)
    assert load_bundle(copy).name == load_unverified(bundle).name


def test_other_files_may_have_hard_links(bundle: Path) -> None:
    for name in (GRAPH, MANIFEST, "tokenizer.json"):
        os.link(bundle / name, bundle.parent / name)
    load_bundle(bundle)


@pytest.mark.parametrize("location", ["../secret.data", "/etc/hostname", "linked.data", "absent.data"])
def test_external_data_outside_the_folder_is_refused(bundle: Path, location: str) -> None:
    (bundle.parent / "secret.data").write_bytes(b"\0" * 400_000)
    if location == "linked.data":
        os.link(bundle.parent / "secret.data", bundle / location)
        rewrite(bundle, lambda manifest: manifest["files"].update({location: ""}))
    model = onnx.load(str(bundle / GRAPH))
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value=location)
    (bundle / GRAPH).write_bytes(model.SerializeToString())
    rewrite(bundle, lambda manifest: None)
    expect_refused(bundle, "has hard links" if location == "linked.data" else "outside the bundle")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"format": 2}', "null"])
def test_a_manifest_that_cannot_be_read_is_refused(bundle: Path, content: str) -> None:
    (bundle / MANIFEST).write_text(content)
    expect_refused(bundle, "cannot be read")


def test_another_format_is_refused(bundle: Path) -> None:
    rewrite(bundle, lambda manifest: manifest.update(format=3))
    expect_refused(bundle, "format 3")
