"""Puts an engine together: tokenizer, runtime and limits for a bundle and the settings.

The only place in `service` that makes an engine. Gateways, model replicas, commands and measurements call it, so that
they all run the same thing. ONNX Runtime is imported inside the functions: a gateway without a model loads none.
"""

from __future__ import annotations

from collections.abc import Callable, Set

from models.bundle import Bundle
from models.runtime.protocol import Device, Runtime
from models.text.tokenizer import Tokenizer
from service.inference.batch_policy import BatchLimits
from service.inference.engine import Engine, EngineMetrics
from service.settings import Settings

MeasureBatches = Callable[[Runtime, BatchLimits, Set[str], int], BatchLimits]
"""Runtime, limits, names of the limits that nobody has set, longest text in tokens: returns the limits to use."""


def open_engine(
    bundle: Bundle, settings: Settings, recorder: EngineMetrics, measure_batches: MeasureBatches | None = None
) -> Engine:
    """Return an engine for the bundle that is loaded and not yet started.

    `measure_batches` runs before the engine is made, and the engine keeps the limits that it returns. Raises
    RuntimeError when the device cannot be used.
    """
    tokenizer, runtime = open_model(bundle, settings.threads, settings.device)
    limits = batch_limits(settings)
    if measure_batches is not None:
        limits = measure_batches(runtime, limits, settings.to_measure, bundle.max_tokens)
    return Engine(bundle, tokenizer, runtime, limits, recorder)


def open_model(bundle: Bundle, threads: int, device: Device) -> tuple[Tokenizer, Runtime]:
    """Return what turns text into tokens and tokens into rows; raises RuntimeError when the device cannot be used."""
    from models.runtime.auto import open_runtime

    return Tokenizer(bundle.tokenizer, bundle.max_tokens), open_runtime(bundle, threads, device)


def batch_limits(settings: Settings) -> BatchLimits:
    """Return the limits of batches and queue that the settings name."""
    return BatchLimits(settings.batch_tokens, settings.batch_items, settings.queue_tokens)
