from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from models.bundle import Bundle, load_bundle
from models.runtime.auto import open_runtime
from models.runtime.onnx import PROVIDERS, OnnxRuntime
from tests.support.tiny_bundle import tiny_bundle

ROOT = Path(__file__).parents[3]


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


def test_open_runtime_chooses_by_device(bundle: Bundle) -> None:
    assert type(open_runtime(bundle)) is OnnxRuntime
    if PROVIDERS["cuda"][0] not in onnxruntime.get_available_providers():
        with pytest.raises(RuntimeError, match="cannot run on cuda"):
            open_runtime(bundle, device="cuda")


@pytest.mark.parametrize(("device", "extra"), [("cpu", "cpu"), ("cuda", "gpu")])
def test_a_missing_runtime_is_reported_with_the_command_that_fixes_it(device: str, extra: str) -> None:
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
    assert process.stdout == f"onnxruntime is missing; to run on {device}: pip install 'heed[{extra}]'\n"
