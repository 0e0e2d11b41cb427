"""The batch limits for a GPU, measured on the session that will serve, and the warm-up of its batch shapes.

The token budget doubles while that makes the runtime faster. Of the budgets that are as fast as the fastest, the
smallest wins, because it answers sooner. This module measures one thread and a runtime without a queue. `throughput`
measures whole replicas with their batcher, for `heed tune`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from statistics import median

import numpy as np
import structlog

from models.runtime.cuda import batch_shapes
from models.runtime.protocol import Runtime
from models.text.encoding import Batch
from service.inference.batch_policy import BatchLimits
from service.tuning.search import doubling, search_while_gaining, smallest_near_best

_log = structlog.get_logger(__name__)

LENGTHS = (16, 64, 256)
MIN_TOKENS, MAX_TOKENS = 2_048, 65_536
BUDGETS = tuple(doubling(MIN_TOKENS, MAX_TOKENS))
"""The token budgets that are tried, smallest first."""

MAX_ITEMS = 1_024
PADDING = 1.3
"""Padded over real tokens. It is higher than on a CPU, because a batch alone costs as much as thousands of tokens."""

_MIN_RUNS = 3
_MIN_SECONDS = 0.05  # for each length of each budget

Clock = Callable[[], float]


def measure_batch_limits(
    runtime: Runtime,
    limits: BatchLimits,
    unset: Set[str],
    max_tokens: int,
    budgets: Sequence[int] = BUDGETS,
    clock: Clock = time.perf_counter,
) -> BatchLimits:
    """Return the limits, with `batch_tokens` and `batch_items` measured where unset, after running all their shapes.

    It takes twenty seconds. `max_tokens` is the length of the longest text.
    """
    if "batch_tokens" in unset:
        readings = search_while_gaining(budgets, lambda tokens: tokens_per_s(runtime, tokens, clock))
        limits = replace(limits, batch_tokens=smallest_near_best(readings))
        _log.info("batch tokens measured", chosen=limits.batch_tokens, tokens_per_s={k: round(v) for k, v in readings})
    if "batch_items" in unset:
        limits = replace(limits, batch_items=min(MAX_ITEMS, limits.batch_tokens // LENGTHS[0]))
    limits = replace(limits, padding=PADDING)
    warm_up(runtime, limits, max_tokens)
    return limits


def tokens_per_s(runtime: Runtime, tokens: int, clock: Clock = time.perf_counter) -> float:
    """Measure padded tokens per second in batches of `tokens`, with an equal number of tokens in each of LENGTHS."""
    batches = [dense_batch(max(1, tokens // length), length) for length in LENGTHS]
    return len(batches) / sum(_seconds(runtime, batch, clock) / batch.ids.size for batch in batches)


def warm_up(runtime: Runtime, limits: BatchLimits, max_tokens: int) -> None:
    """Run every shape that batches within the limits have, the largest first, so that memory is allocated once."""
    for rows, length in batch_shapes(max_tokens, limits.batch_tokens, limits.batch_items):
        runtime.run(dense_batch(rows, length))


def dense_batch(rows: int, length: int) -> Batch:
    """Return a batch without padding. Its token IDs are zeros, since they do not affect the speed."""
    zeros = np.zeros((rows, length), np.int64)
    return Batch(zeros, np.ones_like(zeros), zeros)


def _seconds(runtime: Runtime, batch: Batch, clock: Clock) -> float:
    runtime.run(batch)
    durations_s: list[float] = []
    while len(durations_s) < _MIN_RUNS or sum(durations_s) < _MIN_SECONDS:
        started_s = clock()
        runtime.run(batch)
        durations_s.append(clock() - started_s)
    return median(durations_s)
