"""Chooses the runtime for a bundle and a device."""

from __future__ import annotations

from models.bundle import Bundle
from models.runtime.onnx import OnnxRuntime
from models.runtime.protocol import Device


def open_runtime(bundle: Bundle, threads: int = 1, device: Device = "cpu") -> OnnxRuntime:
    """The bundle's graph for the device, loaded; raises RuntimeError as OnnxRuntime."""
    if device == "cpu":
        return OnnxRuntime(bundle.graph, threads)
    # Here and not above: it needs onnx, which serving on a CPU does without.
    from models.runtime.cuda import BoundRuntime

    return BoundRuntime(bundle.graph, threads, device)
