"""Rankings: arithmetic of milliseconds, on one thread of their own but for what is shorter than handing it over.

The batcher that serves texts serves questions too, so they are admitted, wait, are withdrawn and counted in the same
way. Knows a recommender and what a question says; nothing of HTTP, nothing of how texts become vectors.
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
from service.inference.ranking import Ranking, _is_small, rank_query
from service.inference.ranking_query import RankingQuery
from service.telemetry.batch_report import BatchReport
from service.telemetry.metrics import TaskMetrics

TASK = "ranking"
"""Under which rankings are counted; the texts that they need are those of their bundle's task."""

_LIMITS = BatchLimits(batch_tokens=1, batch_items=1, queue_tokens=50_000_000, text_tokens=2**62)
MAX_INLINE_COST = 8_000
"""What questions cost that are answered in the event loop: 2 to 3 ms, less than the 5 for which another thread that
computes may keep the interpreter. Handing one over costs both threads as much as a third of it."""


class RankingEngine:
    """Call `start` in the event loop that calls `rank`."""

    def __init__(self, recommender: Recommender, metrics: TaskMetrics) -> None:
        self._recommender = recommender
        self._metrics = metrics
        self._batcher: Batcher[RankingQuery, Ranking | Problem] = Batcher(
            self._answers, _LIMITS, self._report, metrics.depth, name=TASK, noun="ranking"
        )

    async def start(self) -> None:
        # Products so small gain nothing from more threads of numpy's, and those spin on cores that others serve with.
        self._limited = threadpool_limits(1, user_api="blas")
        self._batcher.start()

    async def stop(self) -> None:
        """Refuse what is new, finish what was accepted."""
        await self._batcher.stop()
        self._limited.restore_original_limits()

    @property
    def recommender(self) -> Recommender:
        return self._recommender

    @property
    def busy(self) -> bool:
        """Whether any ranking waits or is being made."""
        return self._batcher.busy

    @property
    def healthy(self) -> bool:
        return self._batcher.healthy

    async def rank(
        self, questions: Sequence[RankingQuery], deadline_s: float
    ) -> tuple[list[Ranking | Problem], Timings]:
        """One outcome per question, in order; raises NotReady or Overloaded for all of them."""
        if self._at_once(questions, deadline_s):
            inferred = self._batcher.run_inline(questions)
        else:
            inferred = await self._batcher.run(questions, deadline_s)
        outcomes = [one.row if isinstance(one, InferenceResult) else one for one in inferred]
        self._metrics.outcomes("ok" if isinstance(one, Ranking) else one.code for one in outcomes)
        done = [one for one in inferred if isinstance(one, InferenceResult)]
        queue_s, infer_s = max(((one.queue_s, one.infer_s) for one in done), key=sum, default=(0.0, 0.0))
        return outcomes, Timings(0.0, queue_s, infer_s)

    def _at_once(self, questions: Sequence[RankingQuery], deadline_s: float) -> bool:
        if self._batcher.busy or time.monotonic() >= deadline_s:
            return False
        # Rows of a large catalogue may have to come from the disk.
        small = all(_is_small(question.snapshot) for question in questions)
        return small and sum(question.length for question in questions) <= MAX_INLINE_COST

    def _report(self, report: BatchReport) -> None:
        self._metrics.batch(report)

    def _answers(self, questions: Sequence[RankingQuery]) -> list[Ranking | Problem]:
        return [rank_query(self._recommender, question) for question in questions]
