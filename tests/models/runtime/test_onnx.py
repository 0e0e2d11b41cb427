from __future__ import annotations

import onnxruntime
import pytest

from models.bundle import Bundle, load
from models.runtime.auto import open_runtime
from models.runtime.onnx import PROVIDERS, OnnxRuntime
from tests.support.tiny_bundle import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load(tiny_bundle(tmp_path_factory.mktemp("bundle")))


def test_a_device_that_is_not_there_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(RuntimeError, match="cannot run on cuda"):
        OnnxRuntime(bundle.graph, device="cuda")


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
            OnnxRuntime(bundle.graph, device="cuda")


def test_a_device_gets_its_runtime(bundle: Bundle) -> None:
    assert type(open_runtime(bundle)) is OnnxRuntime
    if PROVIDERS["cuda"][0] not in onnxruntime.get_available_providers():
        with pytest.raises(RuntimeError, match="cannot run on cuda"):
            open_runtime(bundle, device="cuda")
