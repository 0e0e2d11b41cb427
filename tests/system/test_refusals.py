"""What cannot be served is refused before anything is started: one line, no trace, at once."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest

from models.bundle import GRAPH, MANIFEST, TOKENIZER, digest_of
from models.runtime.onnx import PROVIDERS
from tests.support.local_service import free_port, refused


def expect_one_line(result: tuple[int, str, float], *words: str) -> None:
    code, err, seconds = result
    assert code in (1, 2)
    assert len(err.splitlines()) == 1, err
    assert err.startswith("heed: ")
    assert all(word in err for word in words), err
    assert seconds < 20  # nothing of Ray was started


def test_a_port_in_use(bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        expect_one_line(refused("--port", port, "--bundle", str(bundle)), f"127.0.0.1:{port}", "in use")


def test_no_bundle(tmp_path: Path) -> None:
    expect_one_line(refused("--bundle", str(tmp_path / "none")), "no bundle at", "--bundle")


def test_no_haproxy(bundle: Path) -> None:
    environment = {"HEED_HAPROXY_BINARY": "/nowhere/haproxy", "HEED_PORT": str(free_port())}
    expect_one_line(refused("--bundle", str(bundle), environment=environment), "HAProxy is missing")


@pytest.mark.skipif(PROVIDERS["cuda"][0] in onnxruntime.get_available_providers(), reason="it may be there")
def test_no_gpu(bundle: Path) -> None:
    environment = {"HEED_DEVICE": "cuda", "HEED_PORT": str(free_port())}
    expect_one_line(refused("--bundle", str(bundle), environment=environment), "cannot run on cuda", "extra `gpu`")


@pytest.mark.parametrize("port", ["0", "65536"])
def test_a_port_that_is_none(port: str) -> None:
    expect_one_line(refused("--port", port), "HEED_PORT")


def change_a_byte(bundle: Path) -> None:
    content = bytearray((bundle / GRAPH).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / GRAPH).write_bytes(content)


def drop_a_label(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["labels"].pop()
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def add_a_pickle(bundle: Path) -> None:
    (bundle / "weights.pkl").write_bytes(pickle.dumps([1.0]))


def hide_a_pickle(bundle: Path) -> None:
    (bundle / TOKENIZER).write_bytes(pickle.dumps([1.0], protocol=4))
    list_again(bundle)


def lead_outside(bundle: Path) -> None:
    (bundle.parent / "secret.data").write_bytes(b"x" * 64)
    graph = onnx.load(str(bundle / GRAPH))
    tensor = graph.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.data")
    tensor.ClearField("raw_data")
    (bundle / GRAPH).write_bytes(graph.SerializeToString())
    list_again(bundle)


def list_again(bundle: Path) -> None:
    """As somebody would who wants the changed file to be believed."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["files"] = {name: digest_of(bundle / name) for name in manifest["files"]}
    (bundle / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (change_a_byte, [GRAPH, "changed"]),
        (drop_a_label, ["labels"]),
        (add_a_pickle, ["weights.pkl"]),
        (hide_a_pickle, [TOKENIZER, "pickle"]),
        (lead_outside, [GRAPH, "../secret.data"]),
    ],
)
def test_a_spoilt_bundle(bundle: Path, tmp_path: Path, spoil: Callable[[Path], None], words: list[str]) -> None:
    copy = tmp_path / "sentiment"
    shutil.copytree(bundle, copy)
    spoil(copy)
    expect_one_line(refused("--bundle", str(copy), environment=os.environ), "sentiment", *words)
