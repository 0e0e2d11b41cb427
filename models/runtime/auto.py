"""Chooses the runtime for a bundle and a device, and says what is missing for it.

Imports ONNX Runtime only inside functions, because its absence is one of the things that it reports.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from models.bundle import Bundle
from models.runtime.protocol import Device

if TYPE_CHECKING:
    from models.runtime.onnx import OnnxRuntime

_EXTRAS: dict[Device, str] = {"cpu": "cpu", "cuda": "gpu"}


def require_runtime(device: Device) -> None:
    """Raise RuntimeError, with the command that mends it, when nothing is installed that runs on the device."""
    try:
        from models.runtime.onnx import check_device
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise RuntimeError(_missing("ONNX Runtime", device)) from None
    check_device(device)
    if device == "cuda" and find_spec("onnx") is None:
        raise RuntimeError(_missing("onnx", device))


def _missing(package: str, device: Device) -> str:
    return f"{package} is missing; to run on {device}: pip install 'heed[{_EXTRAS[device]}]'"


def open_runtime(bundle: Bundle, threads: int = 1, device: Device = "cpu") -> OnnxRuntime:
    """Return the bundle's graph for the device, loaded; raises RuntimeError when the device cannot be used."""
    require_runtime(device)
    if device == "cpu":
        from models.runtime.onnx import OnnxRuntime

        return OnnxRuntime(bundle.graph, threads)
    # Here and not above: it needs onnx, which serving on a CPU does without.
    from models.runtime.cuda import CudaRuntime

    return CudaRuntime(bundle.graph, threads, device)
