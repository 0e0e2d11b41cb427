from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from models.bundle import Bundle, load_bundle
from models.runtime.auto import open_runtime
from models.runtime.offline import infer_all, infer_vectors
from models.runtime.onnx import PROVIDERS, OnnxRuntime
from models.runtime.protocol import NoVectorsError
from models.text.encoding import collate
from models.text.tokenizer import Tokenizer
from tests.support.older_graph import older_graph
from tests.support.tiny_bundle import WIDTH, tiny_bundle, tiny_intent_bundle

ROOT = Path(__file__).parents[3]
TEXTS = ("Acme gains 3%", "up", "利润下跌", "a much longer text about the profits of a company, and of another one")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_bundle(tmp_path_factory.mktemp("bundle")))


def test_an_unavailable_device_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(RuntimeError, match="cannot run on cuda"):
        OnnxRuntime(bundle.graph, device="cuda")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_session_that_fell_back_to_the_cpu_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime only logs that the GPU's driver is missing."""
    if PROVIDERS["cuda"][0] in onnxruntime.get_available_providers():
        pytest.skip("a session may have a GPU here")
    with monkeypatch.context() as patched:
        patched.setattr(
            onnxruntime, "get_available_providers", lambda: [provider for provider, _ in PROVIDERS.values()]
        )
        patched.setattr(onnxruntime, "preload_dlls", lambda: None)
        with pytest.raises(RuntimeError, match="cannot run on cuda"):
            OnnxRuntime(bundle.graph, device="cuda")


def test_vectors_of_many_texts_come_back_in_their_order(bundle: Bundle) -> None:
    runtime, tokenizer = OnnxRuntime(bundle.graph), Tokenizer.from_bundle(bundle)
    encodings = [tokenizer.encode(text) for text in TEXTS * 40]
    vectors = infer_vectors(runtime, encodings, tokenizer.pad_id)
    assert vectors.shape == (len(encodings), WIDTH)
    alone = [runtime.run_with_vectors(collate([encoding], tokenizer.pad_id))[1][0] for encoding in encodings[:4]]
    np.testing.assert_allclose(vectors, np.tile(alone, (40, 1)), atol=1e-5)
    assert np.abs(np.diff(alone, axis=0)).max(axis=1).min() > 0.1


def test_vectors_of_an_encoder_are_its_rows(tmp_path: Path) -> None:
    bundle = load_bundle(tiny_intent_bundle(tmp_path))
    runtime, tokenizer = OnnxRuntime(bundle.graph), Tokenizer.from_bundle(bundle)
    encodings = [tokenizer.encode(text) for text in TEXTS]
    assert runtime.has_vectors
    rows = infer_all(runtime, encodings, tokenizer.pad_id)
    np.testing.assert_array_equal(infer_vectors(runtime, encodings, tokenizer.pad_id), rows)


def test_a_graph_of_an_older_export_runs_but_has_no_vectors(bundle: Bundle) -> None:
    newer = OnnxRuntime(bundle.graph)
    older = OnnxRuntime(older_graph(onnx.load(str(bundle.graph))).SerializeToString())
    batch = collate([Tokenizer.from_bundle(bundle).encode(TEXTS[0])], pad_id=1)
    assert (newer.has_vectors, older.has_vectors) == (True, False)
    np.testing.assert_array_equal(older.run(batch), newer.run(batch))
    with pytest.raises(NoVectorsError, match="export it again"):
        older.run_with_vectors(batch)


def test_open_runtime_chooses_by_device(bundle: Bundle) -> None:
    assert type(open_runtime(bundle)) is OnnxRuntime
    if PROVIDERS["cuda"][0] not in onnxruntime.get_available_providers():
        with pytest.raises(RuntimeError, match="cannot run on cuda"):
            open_runtime(bundle, device="cuda")


@pytest.mark.parametrize(
    ("device", "requirement"), [("cpu", "onnxruntime==1.32.0"), ("cuda", "'onnxruntime-gpu[cuda,cudnn]==1.31.1'")]
)
def test_a_missing_runtime_is_reported_with_the_command_that_fixes_it(device: str, requirement: str) -> None:
    """Run in a process where `onnxruntime` cannot be imported."""
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from models.runtime.auto import require_runtime\n"
        "try:\n"
        f"    require_runtime({device!r})\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert process.stdout == (
        f"running a model on {device} needs onnxruntime, which is missing; "
        f"run: {sys.executable} -m pip install {requirement}\n"
    )
