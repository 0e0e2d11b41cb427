from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from models.bundle import GPU_GRAPH, Bundle, BundleError, load
from models.runtime_onnx import LENGTH_STEP, PROVIDERS, BoundRuntime, OnnxRuntime, open_runtime, padded
from models.tokens import Batch, Tokens, collate
from tests.tiny import PIECES, tiny_bundle

PAD = 1


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load(tiny_bundle(tmp_path_factory.mktemp("bundle")))


def batch(lengths: list[int]) -> Batch:
    """Every other text names a target."""
    rng = np.random.default_rng(6)
    texts = []
    for number, length in enumerate(lengths):
        types = np.zeros(length, np.int64)
        types[1 : 1 + number % 2] = 1
        texts.append(Tokens(rng.integers(5, len(PIECES), length), types, False, "en"))
    return collate(texts, PAD)


@pytest.mark.parametrize("lengths", [[1], [15], [16], [17], [3, 40, 7, 33], [512, 2]], ids=str)
@pytest.mark.parametrize("graph", ["graph", "gpu_graph"])
def test_bound_answers_are_those_of_a_plain_run(bundle: Bundle, graph: str, lengths: list[int]) -> None:
    path, given = getattr(bundle, graph), batch(lengths)
    plain, bound = OnnxRuntime(path).run(given), BoundRuntime(path).run(given)
    assert bound.shape == (len(lengths), 3)
    assert bound.dtype == np.float32
    np.testing.assert_allclose(bound, plain, atol=5e-3 if graph == "gpu_graph" else 1e-5)


def test_answers_of_one_run_outlive_the_next(bundle: Bundle) -> None:
    runtime = BoundRuntime(bundle.graph)
    first = runtime.run(batch([9, 9]))
    kept = first.copy()
    runtime.run(batch([20, 20]))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(("length", "expected"), [(1, 16), (16, 16), (17, 32), (512, 512)])
def test_lengths_repeat(length: int, expected: int) -> None:
    given = np.ones((2, length), np.int64)
    found = padded(given)
    assert found.shape == (2, expected)
    assert expected % LENGTH_STEP == 0
    assert found.sum() == 2 * length


def test_a_device_that_is_not_there_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(RuntimeError, match="cannot run on cuda"):
        OnnxRuntime(bundle.gpu_graph, device="cuda")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_session_that_fell_back_to_the_cpu_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the GPU's driver is missing, ONNX Runtime only logs it."""
    if PROVIDERS["cuda"][0] in onnxruntime.get_available_providers():
        pytest.skip("here a session may have its device")
    with monkeypatch.context() as patched:
        patched.setattr(
            onnxruntime, "get_available_providers", lambda: [provider for provider, _ in PROVIDERS.values()]
        )
        patched.setattr(onnxruntime, "preload_dlls", lambda: None)
        with pytest.raises(RuntimeError, match="cannot run on cuda"):
            OnnxRuntime(bundle.gpu_graph, device="cuda")


def test_a_device_gets_its_graph(bundle: Bundle, tmp_path: Path) -> None:
    assert type(open_runtime(bundle)) is OnnxRuntime
    without = load(tiny_bundle(tmp_path))
    without.gpu_graph.unlink()
    with pytest.raises(BundleError, match=f"no graph for GPUs, {GPU_GRAPH}"):
        open_runtime(without, device="cuda")
