"""What cannot be served is refused before anything is started: one line, no trace, at once."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest

from models.bundle import GRAPH, MANIFEST, TOKENIZER, file_digest
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
        expect_one_line(refused("--port", port, "--bundle", str(bundle)), f"127.0.0.1:{port}", "in use", "--port")


def test_no_bundle(tmp_path: Path) -> None:
    expect_one_line(refused("--bundle", str(tmp_path / "none")), "no bundle at", "--bundle")


def test_no_haproxy(bundle: Path) -> None:
    environment = {"HEED_HAPROXY_BINARY": "/nowhere/haproxy", "HEED_PORT": str(free_port())}
    expect_one_line(refused("--bundle", str(bundle), environment=environment), "HAProxy is missing")


@pytest.mark.skipif(PROVIDERS["cuda"][0] in onnxruntime.get_available_providers(), reason="it may be there")
def test_no_gpu(bundle: Path) -> None:
    environment = {"HEED_DEVICE": "cuda", "HEED_PORT": str(free_port())}
    expect_one_line(refused("--bundle", str(bundle), environment=environment), "cannot run on cuda", "'heed[gpu]'")


@pytest.mark.parametrize("port", ["0", "65536"])
def test_a_port_that_is_none_is_named_as_it_was_given(port: str) -> None:
    result = refused("--port", port, environment={"HEED_PORT": "8000"})
    expect_one_line(result, f"--port {port}: ")
    assert "HEED_PORT" not in result[1]
    expect_one_line(refused(environment={"HEED_PORT": port}), f"HEED_PORT='{port}': ")


def test_a_service_without_a_runtime(bundle: Path) -> None:
    """As after `pip install .`, without the extra that brings ONNX Runtime."""
    code = "import sys; sys.modules['onnxruntime'] = None; from service.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", "--bundle", str(bundle)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "heed: onnxruntime is missing; to run on cpu: pip install 'heed[cpu]'\n"


@pytest.mark.parametrize("below", ["", "heads"])
def test_a_data_folder_that_is_a_file(bundle: Path, tmp_path: Path, below: str) -> None:
    file = tmp_path / "data"
    file.touch()
    environment = {"HEED_RECOMMEND_BUNDLE": str(bundle), "HEED_DATA_DIR": str(file / below)}
    expect_one_line(refused("--bundle", str(bundle), environment=environment), f"{file} is no folder", "none")


def test_a_data_folder_in_which_nothing_can_be_written(bundle: Path) -> None:
    """In /proc not even root can."""
    environment = {"HEED_RECOMMEND_BUNDLE": str(bundle), "HEED_DATA_DIR": "/proc/heed"}
    expect_one_line(refused("--bundle", str(bundle), environment=environment), "/proc/heed: it cannot be written to")


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
    manifest["files"] = {name: file_digest(bundle / name) for name in manifest["files"]}
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
