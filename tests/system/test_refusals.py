"""A start that cannot succeed is refused immediately, with one line and no traceback."""

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
from tests.support.local_service import free_port, run_refused


def expect_one_line(result: tuple[int, str, float], *words: str) -> None:
    code, err, seconds = result
    assert code in (1, 2)
    assert len(err.splitlines()) == 1, err
    assert err.startswith("heed: ")
    assert all(word in err for word in words), err
    assert seconds < 20  # nothing of Ray was started


def test_a_port_in_use_is_refused(bundle: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        expect_one_line(run_refused("--port", port, "--bundle", str(bundle)), f"127.0.0.1:{port}", "in use", "--port")


def test_a_missing_bundle_is_refused(tmp_path: Path) -> None:
    expect_one_line(run_refused("--bundle", str(tmp_path / "none")), "no bundle at", "--bundle")


def test_a_missing_haproxy_is_refused(bundle: Path) -> None:
    environment = {"HEED_HAPROXY_BINARY": "/nowhere/haproxy", "HEED_PORT": str(free_port())}
    expect_one_line(run_refused("--bundle", str(bundle), environment=environment), "/nowhere/haproxy: no program")


@pytest.mark.skipif(
    PROVIDERS["cuda"][0] in onnxruntime.get_available_providers(), reason="this onnxruntime supports CUDA"
)
def test_a_missing_gpu_is_refused(bundle: Path) -> None:
    environment = {"HEED_DEVICE": "cuda", "HEED_PORT": str(free_port())}
    expect_one_line(
        run_refused("--bundle", str(bundle), environment=environment), "cannot run on cuda", "onnxruntime-gpu"
    )


@pytest.mark.parametrize("port", ["0", "65536"])
def test_an_invalid_port_is_named_by_its_source(port: str) -> None:
    result = run_refused("--port", port, environment={"HEED_PORT": "8000"})
    expect_one_line(result, f"--port {port}: ")
    assert "HEED_PORT" not in result[1]
    expect_one_line(run_refused(environment={"HEED_PORT": port}), f"HEED_PORT='{port}': ")


def test_a_missing_runtime_is_refused(bundle: Path) -> None:
    """ONNX Runtime is missing after `pip install .` without an extra."""
    code = "import sys; sys.modules['onnxruntime'] = None; from service.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", "--bundle", str(bundle)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("heed: running a model on cpu needs onnxruntime, which is missing; run: ")
    assert done.stderr.endswith(" -m pip install onnxruntime==1.32.0\n")


@pytest.mark.parametrize("subfolder", ["", "heads"])
def test_a_data_folder_that_is_a_file_is_refused(bundle: Path, tmp_path: Path, subfolder: str) -> None:
    file = tmp_path / "data"
    file.touch()
    environment = {"HEED_RECOMMEND_BUNDLE": str(bundle), "HEED_DATA_DIR": str(file / subfolder)}
    expect_one_line(run_refused("--bundle", str(bundle), environment=environment), f"{file} is not a folder", "none")


def test_a_read_only_data_folder_is_refused(bundle: Path) -> None:
    """Not even root can write to /proc."""
    environment = {"HEED_RECOMMEND_BUNDLE": str(bundle), "HEED_DATA_DIR": "/proc/heed"}
    expect_one_line(
        run_refused("--bundle", str(bundle), environment=environment), "/proc/heed: the folder is not writable"
    )


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
    update_digests(bundle)


def refer_outside(bundle: Path) -> None:
    (bundle.parent / "secret.data").write_bytes(b"x" * 64)
    graph = onnx.load(str(bundle / GRAPH))
    tensor = graph.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.data")
    tensor.ClearField("raw_data")
    (bundle / GRAPH).write_bytes(graph.SerializeToString())
    update_digests(bundle)


def update_digests(bundle: Path) -> None:
    """Update the digests, as an attacker would after changing a file."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["files"] = {name: file_digest(bundle / name) for name in manifest["files"]}
    (bundle / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (change_a_byte, [GRAPH, "changed"]),
        (drop_a_label, ["labels"]),
        (add_a_pickle, ["weights.pkl"]),
        (hide_a_pickle, [TOKENIZER, "pickle"]),
        (refer_outside, [GRAPH, "../secret.data"]),
    ],
)
def test_a_damaged_bundle_is_refused(
    bundle: Path, tmp_path: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    copy = tmp_path / "sentiment"
    shutil.copytree(bundle, copy)
    damage(copy)
    expect_one_line(run_refused("--bundle", str(copy), environment=os.environ), "sentiment", *words)
