"""The batches for a GPU, measured on the session that will serve, where nobody has set them; and its shapes, warmed.

Budgets of padded tokens are doubled while that makes the runtime faster, and of those that are as fast as the fastest
the smallest is taken, because it answers sooner. Knows a runtime and its speed: one thread, no queue. `throughput`
measures whole replicas with their batcher, for `heed tune`.
"""

from __future__ import annotations

import time
from collections.abc import Set
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
MAX_ITEMS = 1_024
PADDING = 1.3
"""Padded over real tokens: more than on a CPU, because what a batch costs by itself is that of thousands of tokens."""

_RUNS = 3
_SECONDS = 0.05  # at least, for each length of each budget


def measure_batch_limits(runtime: Runtime, given: BatchLimits, unset: Set[str], longest: int) -> BatchLimits:
    """The limits given, with `batch_tokens` and `batch_items` measured where unset; every shape of theirs has been run.

    Takes twenty seconds; `longest` is the longest text in tokens.
    """
    limits = given
    if "batch_tokens" in unset:
        readings = search_while_gaining(doubling(MIN_TOKENS, MAX_TOKENS), lambda tokens: tokens_per_s(runtime, tokens))
        limits = replace(limits, batch_tokens=smallest_near_best(readings))
        _log.info("batch tokens measured", chosen=limits.batch_tokens, tokens_per_s={k: round(v) for k, v in readings})
    if "batch_items" in unset:
        limits = replace(limits, batch_items=min(MAX_ITEMS, limits.batch_tokens // LENGTHS[0]))
    limits = replace(limits, padding=PADDING)
    warm_up(runtime, limits, longest)
    return limits


def tokens_per_s(runtime: Runtime, tokens: int) -> float:
    """Padded tokens a second in batches of so many, when each of LENGTHS brings as many of them."""
    batches = [dense_batch(max(1, tokens // length), length) for length in LENGTHS]
    return len(batches) / sum(_seconds(runtime, batch) / batch.ids.size for batch in batches)


def warm_up(runtime: Runtime, limits: BatchLimits, longest: int) -> None:
    """Run every shape that batches within the limits have: the largest first, so that memory is asked for once."""
    for rows, length in batch_shapes(longest, limits.batch_tokens, limits.batch_items):
        runtime.run(dense_batch(rows, length))


def dense_batch(rows: int, length: int) -> Batch:
    """A batch without padding; what the tokens are makes no difference to its speed."""
    zeros = np.zeros((rows, length), np.int64)
    return Batch(zeros, np.ones_like(zeros), zeros)


def _seconds(runtime: Runtime, batch: Batch) -> float:
    runtime.run(batch)
    taken: list[float] = []
    while len(taken) < _RUNS or sum(taken) < _SECONDS:
        started_s = time.perf_counter()
        runtime.run(batch)
        taken.append(time.perf_counter() - started_s)
    return median(taken)
