"""Why the served models answer as they do: explanations on a thread of their own, which gives way to plain requests.

One request at a time, a few may wait, whichever model they ask about. The thread has sessions of its own, each opened
by the first explanation of its model, so that a gateway which nobody asks for any is as light as before. Its priority
is lower, and while plain texts are being answered it pauses after each of its steps for nine times as long as that
took. Between two steps it looks whether its caller's time is over.
Knows nothing of HTTP or of Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from models.bundle import Bundle
from models.text.encoding import Batch
from models.text.tokenizer import Tokenizer
from service.errors import DeadlineExceeded, NotReady, Overloaded, Problem
from service.explanation.pacing import Job, Pacer, remaining_s
from service.explanation.request import (
    AnyExplanation,
    ExplanationBatch,
    ExplanationCancelled,
    ExplanationRequest,
    HistoryExplanation,
    InstanceFactory,
    TextExplanation,
)
from service.inference.priority import lower_thread_priority

if TYPE_CHECKING:
    from models.explain.explainer import Explainer


MAX_WAITING = 4
_MEMORY = 0.3  # of how long explanations take, for Retry-After: the share of the newest
_RESTART_S = 5.0


@dataclass(frozen=True, slots=True)
class ExplainableModel:
    """A model whose answers can be explained, by its CPU graph."""

    bundle: Bundle
    tokenizer: Tokenizer


HistoryJob = Callable[[Pacer], HistoryExplanation | Problem]
"""Explains one item's history in the thread, by steps of its pace."""


class ExplanationWorker:
    """Explains the answers of models by task.

    `busy` says whether plain texts are being answered; it is asked from the thread.
    """

    def __init__(self, sources: Mapping[str, ExplainableModel], busy: Callable[[], bool]) -> None:
        self._sources, self._pace = sources, Pacer(busy)
        self._explainers: dict[str, Explainer] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="explain", initializer=lower_thread_priority)
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._usual_s = 1.0
        self._open = True

    async def stop(self) -> None:
        """Refuse what is new, give up what is under way."""
        self._open = False
        if (job := self._pace.job) is not None:
            job.given_up.set()
        await asyncio.to_thread(self._thread.shutdown)

    def explains(self, task: str) -> bool:
        return task in self._sources

    async def explain(
        self, task: str, asks: Sequence[InstanceFactory | Problem], wanted: ExplanationRequest, deadline_s: float
    ) -> ExplanationBatch[TextExplanation]:
        """Each item's question, or the problem that it already has, by `deadline_s` on the monotonic clock.

        What is not reached by then gets DeadlineExceeded, the rest stands. Raises Overloaded when too many wait,
        NotReady once stopped, and InvalidRequest or TooMuchToExplain for all. Cancelling ends the work at its next
        step.
        """
        return await self._explanations(len(asks), deadline_s, partial(self._texts, task, asks, wanted))

    async def explain_histories(
        self, asks: Sequence[HistoryJob | Problem], deadline_s: float
    ) -> ExplanationBatch[HistoryExplanation]:
        """As `explain`, of what needs no model of texts any more."""
        return await self._explanations(len(asks), deadline_s, partial(self._histories, asks))

    async def _explanations(
        self, items: int, deadline_s: float, work_on: Callable[[Job[AnyExplanation]], None]
    ) -> ExplanationBatch[AnyExplanation]:
        started_s = time.monotonic()
        await self._take_turn(deadline_s)
        job: Job[AnyExplanation] = Job(items, deadline_s)
        begun_s = time.monotonic()
        try:
            if not self._open:
                raise NotReady("ExplanationBatch have been stopped here.", retry_after_s=_RESTART_S)
            self._pace.job = job
            work = asyncio.get_running_loop().run_in_executor(self._thread, self._work, job, work_on)
        except BaseException:
            self._turn.release()
            raise
        # Not when this call ends: what it gives up may be in the middle of a step.
        work.add_done_callback(lambda _: self._done(begun_s))
        try:
            await asyncio.wait([work], timeout=remaining_s(deadline_s))
        finally:
            job.given_up.set()
        if work.done():
            work.result()
        if job.refused is not None:
            raise job.refused
        return ExplanationBatch(job.answered(), begun_s - started_s, time.monotonic() - begun_s)

    async def _take_turn(self, deadline_s: float) -> None:
        if self._waiting >= MAX_WAITING:
            retry_s = self._usual_s * (self._waiting + 1)
            raise Overloaded("As many explanations wait as may wait.", retry_after_s=retry_s)
        self._waiting += 1
        try:
            async with asyncio.timeout(remaining_s(deadline_s)):
                await self._turn.acquire()
        except TimeoutError:
            raise DeadlineExceeded("Other explanations took all the time there was.") from None
        finally:
            self._waiting -= 1

    def _done(self, begun_s: float) -> None:
        self._usual_s += _MEMORY * (time.monotonic() - begun_s - self._usual_s)
        self._pace.job = None
        self._turn.release()

    # What follows runs in the thread.

    def _work(self, job: Job[AnyExplanation], work_on: Callable[[Job[AnyExplanation]], None]) -> None:
        try:
            if not job.over:
                work_on(job)
        except ExplanationCancelled:
            return
        except Problem as problem:
            job.refused = problem

    def _texts(
        self,
        task: str,
        asks: Sequence[InstanceFactory | Problem],
        wanted: ExplanationRequest,
        job: Job[TextExplanation],
    ) -> None:
        from service.explanation.text import check_graph, explain_text

        explainer = self._explainer(task)
        check_graph(explainer, wanted)
        left = wanted.max_numbers
        for ask in asks:
            outcome = ask if isinstance(ask, Problem) else explain_text(explainer, ask, wanted, left)
            if isinstance(outcome, TextExplanation) and outcome.attention is not None:
                left -= outcome.attention.weights.size
            job.outcomes.append(outcome)

    def _histories(self, asks: Sequence[HistoryJob | Problem], job: Job[HistoryExplanation]) -> None:
        for ask in asks:
            job.outcomes.append(ask if isinstance(ask, Problem) else ask(self._pace))

    def _explainer(self, task: str) -> Explainer:
        from models.explain.explainer import Explainer

        if task not in self._explainers:
            # As where rankings are made: threads of numpy's would spin on cores that others serve with.
            threadpool_limits(1, user_api="blas")
            source = self._sources[task]
            runtime = _PacedRuntime(source.bundle, self._pace)
            self._explainers[task] = Explainer(source.bundle, source.tokenizer, runtime, self._pace.step)
        return self._explainers[task]


class _PacedRuntime:
    """A runtime that makes way."""

    def __init__(self, bundle: Bundle, pace: Pacer) -> None:
        from models.runtime.onnx import OnnxRuntime

        self._runtime, self._pace = OnnxRuntime(bundle.graph), pace

    def run(self, batch: Batch) -> NDArray[np.float32]:
        return self._pace.step(lambda: self._runtime.run(batch))
