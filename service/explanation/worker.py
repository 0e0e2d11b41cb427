"""The explanation worker: explanations of the served models, on a thread that gives way to plain requests.

It handles one request at a time, of any model, and a few may wait. The thread has its own inference sessions. The first
explanation of a model opens its session, so a gateway without explanations stays light. The thread has a lower
priority. While plain requests are served, it pauses after each step for nine times the length of the step.

Explaining is one long call into `models.explain`, which does not know threads, deadlines or load. So the worker passes
it a runtime that wraps the real one, and control returns to this file before every call of the model. There the pacer
checks the deadline, calls the real runtime and pauses. Without the wrapper, every explanation method would have to know
the pacer. The module does not know HTTP or Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
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
_SMOOTHING = 0.3  # weight of the newest duration in the mean duration of a request, for Retry-After
_RESTART_S = 5.0


@dataclass(frozen=True, slots=True)
class ExplainableModel:
    """A model whose answers can be explained with its CPU graph."""

    bundle: Bundle
    tokenizer: Tokenizer


HistoryJob = Callable[[Pacer], HistoryExplanation | Problem]
"""A function that explains the history of a user in the thread, in steps of the pacer."""


class ExplanationWorker:
    """The explanation thread and its queue; `models` are by task.

    The thread calls `busy`, which returns whether plain requests are being served.
    """

    def __init__(self, models: Mapping[str, ExplainableModel], busy: Callable[[], bool]) -> None:
        self._models, self._pacer = models, Pacer(busy)
        self._explainers: dict[str, Explainer] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="explain", initializer=lower_thread_priority)
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._mean_s = 1.0
        self._open = True

    async def stop(self) -> None:
        """Refuse new requests and cancel the current one."""
        self._open = False
        if (job := self._pacer.job) is not None:
            job.cancelled.set()
        await asyncio.to_thread(self._thread.shutdown)

    def explains(self, task: str) -> bool:
        """Return whether the worker has the model of this task."""
        return task in self._models

    async def explain(
        self, task: str, items: Sequence[InstanceFactory | Problem], request: ExplanationRequest, deadline_s: float
    ) -> ExplanationBatch[TextExplanation]:
        """Explain each item, unless it has a problem already, by `deadline_s` on the monotonic clock.

        Items that are not reached in time get DeadlineExceeded, and the others keep their outcomes. Cancelling ends the
        work at its next step.

        Raises:
            Overloaded: Too many requests wait.
            DeadlineExceeded: The deadline passed while other requests were explained.
            NotReady: The worker has stopped.
            InvalidRequest: The model has not what the request needs.
            ExplanationTooLarge: The maps of the request would be too large.
        """
        return await self._run(len(items), deadline_s, partial(self._explain_texts, task, items, request))

    async def explain_histories(
        self, items: Sequence[HistoryJob | Problem], deadline_s: float
    ) -> ExplanationBatch[HistoryExplanation]:
        """Explain histories, like `explain` for texts."""
        return await self._run(len(items), deadline_s, partial(self._explain_histories, items))

    async def _run(
        self, items: int, deadline_s: float, work_on: Callable[[Job[AnyExplanation]], None]
    ) -> ExplanationBatch[AnyExplanation]:
        started_s = time.monotonic()
        await self._wait_for_turn(deadline_s)
        job: Job[AnyExplanation] = Job(items, deadline_s)
        began_s = time.monotonic()
        try:
            if not self._open:
                raise NotReady("Explanations have been stopped here.", retry_after_s=_RESTART_S)
            self._pacer.job = job
            work = asyncio.get_running_loop().run_in_executor(
                self._thread, copy_context().run, self._work, job, work_on
            )
        except BaseException:
            self._lock.release()
            raise
        # The turn ends with the work, not with this call, because cancelled work may be in the middle of a step.
        work.add_done_callback(lambda _: self._end_turn(began_s))
        try:
            await asyncio.wait([work], timeout=remaining_s(deadline_s))
        finally:
            job.cancelled.set()
        if work.done():
            work.result()
        if job.problem is not None:
            raise job.problem
        return ExplanationBatch(job.all_outcomes(), began_s - started_s, time.monotonic() - began_s)

    async def _wait_for_turn(self, deadline_s: float) -> None:
        if self._waiting >= MAX_WAITING:
            retry_s = self._mean_s * (self._waiting + 1)
            raise Overloaded("Too many explanations wait already.", retry_after_s=retry_s)
        self._waiting += 1
        try:
            async with asyncio.timeout(remaining_s(deadline_s)):
                await self._lock.acquire()
        except TimeoutError:
            raise DeadlineExceeded("Other explanations took all the time of this request.") from None
        finally:
            self._waiting -= 1

    def _end_turn(self, began_s: float) -> None:
        self._mean_s += _SMOOTHING * (time.monotonic() - began_s - self._mean_s)
        self._pacer.job = None
        self._lock.release()

    # The following methods run in the explanation thread.

    def _work(self, job: Job[AnyExplanation], work_on: Callable[[Job[AnyExplanation]], None]) -> None:
        try:
            if not job.is_over:
                work_on(job)
        except ExplanationCancelled:
            return
        except Problem as problem:
            job.problem = problem

    def _explain_texts(
        self,
        task: str,
        items: Sequence[InstanceFactory | Problem],
        request: ExplanationRequest,
        job: Job[TextExplanation],
    ) -> None:
        from service.explanation.text import check_graph, explain_text

        explainer = self._open_explainer(task)
        check_graph(explainer, request)
        max_numbers = request.max_numbers
        for item in items:
            outcome = item if isinstance(item, Problem) else explain_text(explainer, item, request, max_numbers)
            if isinstance(outcome, TextExplanation) and outcome.attention is not None:
                max_numbers -= outcome.attention.weights.size
            job.outcomes.append(outcome)

    def _explain_histories(self, items: Sequence[HistoryJob | Problem], job: Job[HistoryExplanation]) -> None:
        for item in items:
            job.outcomes.append(item if isinstance(item, Problem) else item(self._pacer))

    def _open_explainer(self, task: str) -> Explainer:
        from models.explain.explainer import Explainer

        if task not in self._explainers:
            # As in the ranking engine, more numpy threads would spin on cores that serve requests.
            threadpool_limits(1, user_api="blas")
            model = self._models[task]
            runtime = _PacedRuntime(model.bundle, self._pacer)
            self._explainers[task] = Explainer(model.bundle, model.tokenizer, runtime, self._pacer.step)
        return self._explainers[task]


class _PacedRuntime:
    """A runtime whose calls are steps of the pacer; the module's docstring says why."""

    def __init__(self, bundle: Bundle, pacer: Pacer) -> None:
        from models.runtime.onnx import OnnxRuntime

        self._runtime, self._pacer = OnnxRuntime(bundle.graph), pacer

    def run(self, batch: Batch) -> NDArray[np.float32]:
        return self._pacer.step(lambda: self._runtime.run(batch))
