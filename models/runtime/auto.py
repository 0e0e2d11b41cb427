"""The choice of the runtime for a bundle and a device, and the check that it is installed.

ONNX Runtime is imported only inside functions, because its absence is an error that this module reports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.bundle import Bundle
from models.installation import require_installed
from models.runtime.protocol import Device

if TYPE_CHECKING:
    from models.runtime.onnx import OnnxRuntime

_PACKAGES: dict[Device, tuple[str, ...]] = {"cpu": ("onnxruntime",), "cuda": ("onnxruntime", "onnx")}
_EXTRAS: dict[Device, str] = {"cpu": "cpu", "cuda": "gpu"}


def require_runtime(device: Device) -> None:
    """Raise RuntimeError, with the command that fixes it, if no runtime for the device is installed.

    For a CPU this does not import ONNX Runtime, which takes time and leaves a file in the folder for temporary files.
    """
    require_installed(f"running a model on {device}", *_PACKAGES[device], extra=_EXTRAS[device])
    if device != "cpu":
        from models.runtime.onnx import check_device

        check_device(device)


def open_runtime(bundle: Bundle, threads: int = 1, device: Device = "cpu") -> OnnxRuntime:
    """Load the bundle's graph for the device; raises RuntimeError if the device cannot be used."""
    require_runtime(device)
    if device == "cpu":
        from models.runtime.onnx import OnnxRuntime

        return OnnxRuntime(bundle.graph, threads)
    # Imported here because it needs onnx, which is not installed for serving on a CPU.
    from models.runtime.cuda import CudaRuntime

    return CudaRuntime(bundle.graph, threads, device)
