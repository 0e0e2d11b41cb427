"""Assembly of an engine: tokenizer, runtime and limits for a bundle and the settings.

This is the only module of `service` that makes an engine. Gateways, model replicas, commands and measurements call it,
so all of them run the same engine. Functions import ONNX Runtime, because a gateway without a model must not load it.
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
"""A function of the runtime, the limits, the names of unset limits and the tokens of the longest text.

It returns the limits to use.
"""


def open_engine(
    bundle: Bundle, settings: Settings, recorder: EngineMetrics, measure_batches: MeasureBatches | None = None
) -> Engine:
    """Return a loaded engine for the bundle that has not been started.

    `measure_batches` runs first, and the engine uses the limits that it returns.

    Raises:
        RuntimeError: The device cannot be used.
    """
    tokenizer, runtime = open_model(bundle, settings.threads, settings.device)
    limits = batch_limits(settings)
    if measure_batches is not None:
        limits = measure_batches(runtime, limits, settings.to_measure, bundle.max_tokens)
    return Engine(bundle, tokenizer, runtime, limits, recorder)


def open_model(bundle: Bundle, threads: int, device: Device) -> tuple[Tokenizer, Runtime]:
    """Return the bundle's tokenizer and its runtime, loaded.

    Raises:
        RuntimeError: The device cannot be used.
    """
    from models.runtime.auto import open_runtime

    return Tokenizer.from_bundle(bundle), open_runtime(bundle, threads, device)


def batch_limits(settings: Settings) -> BatchLimits:
    """Return the limits of batches and of the queue in the settings."""
    return BatchLimits(settings.batch_tokens, settings.batch_items, settings.queue_tokens)
