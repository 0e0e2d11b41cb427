"""The ranking engine: rankings take milliseconds and run on a thread of their own.

Rankings that are shorter than a handover to that thread run in the event loop. Queries use the same batcher as texts,
so admission, waiting, withdrawal and counting are the same. The module knows a recommender and its queries. It does
not know HTTP, or how texts become vectors.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from threadpoolctl import threadpool_limits

from models.ranking.recommender import Recommender
from service.errors import Problem
from service.inference.batch_policy import BatchLimits, InferenceResult
from service.inference.batcher import Batcher
from service.inference.predictor import Timings
from service.inference.ranking import Ranking, is_small, rank_query
from service.inference.ranking_query import RankingQuery
from service.telemetry.batch_report import BatchReport
from service.telemetry.metrics import TaskMetrics

TASK = "ranking"
"""The task of rankings in metrics. Texts of rankings are counted under the task of their bundle."""

_LIMITS = BatchLimits(batch_tokens=1, batch_items=1, queue_tokens=50_000_000, text_tokens=2**62)
MAX_INLINE_COST = 8_000
"""The maximum cost of queries that are answered in the event loop, which take 2 to 3 ms.

A computing thread may hold the interpreter for 5 ms. Handing a query over costs both threads up to a third of that.
"""


class RankingEngine:
    """A recommender and its batcher. Call `start` in the event loop that calls `rank`."""

    def __init__(self, recommender: Recommender, metrics: TaskMetrics) -> None:
        self._recommender = recommender
        self._metrics = metrics
        self._batcher: Batcher[RankingQuery, Ranking | Problem] = Batcher(
            self._rank_all, _LIMITS, self._report, metrics.set_depth, name=TASK, noun="ranking"
        )

    async def start(self) -> None:
        # Such small products gain nothing from more numpy threads, and those would spin on cores that serve requests.
        self._blas_limits = threadpool_limits(1, user_api="blas")
        self._batcher.start()

    async def stop(self) -> None:
        """Refuse new queries and finish the accepted ones."""
        await self._batcher.stop()
        self._blas_limits.restore_original_limits()

    @property
    def recommender(self) -> Recommender:
        return self._recommender

    @property
    def busy(self) -> bool:
        """Return whether any ranking waits or runs."""
        return self._batcher.busy

    @property
    def healthy(self) -> bool:
        return self._batcher.healthy

    async def rank(self, queries: Sequence[RankingQuery], deadline_s: float) -> tuple[list[Ranking | Problem], Timings]:
        """Return one outcome per query, in order, and the timings.

        Raises:
            NotReady: The engine is not running.
            Overloaded: The queries would wait too long, or the queue is full.
        """
        if self._fits_event_loop(queries, deadline_s):
            inferred = self._batcher.run_inline(queries)
        else:
            inferred = await self._batcher.run(queries, deadline_s)
        outcomes = [result.row if isinstance(result, InferenceResult) else result for result in inferred]
        self._metrics.count_outcomes("ok" if isinstance(outcome, Ranking) else outcome.code for outcome in outcomes)
        results = [result for result in inferred if isinstance(result, InferenceResult)]
        queue_s, infer_s = max(((result.queue_s, result.infer_s) for result in results), key=sum, default=(0.0, 0.0))
        return outcomes, Timings(0.0, queue_s, infer_s)

    def _fits_event_loop(self, queries: Sequence[RankingQuery], deadline_s: float) -> bool:
        if self._batcher.busy or time.monotonic() >= deadline_s:
            return False
        # Rows of a large catalogue may have to be read from the disk.
        small = all(is_small(query.snapshot) for query in queries)
        return small and sum(query.length for query in queries) <= MAX_INLINE_COST

    def _report(self, report: BatchReport) -> None:
        self._metrics.record_batch(report)

    def _rank_all(self, queries: Sequence[RankingQuery]) -> list[Ranking | Problem]:
        return [rank_query(self._recommender, query) for query in queries]
