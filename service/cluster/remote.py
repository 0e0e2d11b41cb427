"""A model in replicas of its own, across one hop: what waits travels together, so the hop is paid once per call.

No timer: what comes while calls are under way gathers and leaves with the next. Calls are bounded per replica: enough
that a replica has its next texts before it is done with these, few enough that each carries many. Every caller ends,
with an answer or a problem, whatever becomes of a replica. Knows Serve's handle; nothing of HTTP, nothing of models.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, replace

import grpc
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from models.bundle import Bundle
from service.cluster.remote_call import EngineCounts, RemoteRequest, RemoteResponse
from service.errors import DeadlineExceeded, NotReady, Overloaded, Problem, ReplicaLost, from_unknown
from service.inference.admission import ThroughputEstimator, work_budget_s
from service.inference.batch_policy import BatchLimits
from service.inference.predictor import Item, Prediction, PredictionBatch
from service.telemetry.metrics import CallMetrics, TaskMetrics

# Texts that a replica has in two calls end in one batch, so their replies leave together; two more calls must be there
# by then, or the replica would idle for the time of a hop.
CALLS_PER_REPLICA = 4

_RESTART_S = 5.0  # about what a replica needs to be replaced
_SPECIAL_TOKENS = 3  # at most, around a text and its entity


@dataclass(slots=True, eq=False)
class _Request:
    items: tuple[Item, ...]
    truncate: bool
    deadline_s: float
    since_s: float
    tokens: int  # at most; nobody has tokenised yet
    outcome: asyncio.Future[PredictionBatch | Problem]
    call: _Call | None = None

    def part(self) -> RemoteRequest:
        return RemoteRequest(self.items, self.truncate, work_budget_s(max(0.0, self.deadline_s - time.monotonic())))

    def settle(self, outcome: PredictionBatch | Problem) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


@dataclass(slots=True, eq=False)
class _Call:
    requests: tuple[_Request, ...]
    tokens: int  # 0 once it has come back
    task: asyncio.Task[None] | None = None

    def abandon(self) -> None:
        """Withdraw the whole call once nobody waits for any of it."""
        if self.task and not self.task.done() and all(request.outcome.done() for request in self.requests):
            self.task.cancel()


class RemotePredictor:
    """`replicas` is how many the handle knows of; `limits` are those of the engine at the other end."""

    def __init__(
        self,
        bundle: Bundle,
        handle: DeploymentHandle,
        replicas: Callable[[], int],
        limits: BatchLimits,
        metrics: TaskMetrics,
        calls: CallMetrics,
    ) -> None:
        self.bundle = bundle
        self._handle = handle
        self._replicas = replicas
        self._limits = limits
        self._metrics = metrics
        self._call_metrics = calls
        self._open = False
        self._waiting: dict[_Request, None] = {}  # oldest first
        self._waiting_items = 0
        self._waiting_tokens = 0
        self._calls: set[_Call] = set()
        self._sending = False
        self._drain = ThroughputEstimator()
        self._last_reply_s = -math.inf

    async def start(self) -> None:
        """Does not wait for a replica: a gateway without one answers, and says 503."""
        self._model = self._handle.predict  # its first use makes the handle's router, in this event loop
        self._open = True

    async def stop(self) -> None:
        self._open = False
        self._send()
        while self._calls:
            await asyncio.wait([call.task for call in self._calls if call.task])

    @property
    def ready(self) -> bool:
        return self._open and self._replicas() > 0

    @property
    def healthy(self) -> bool:
        """Always: without a replica this process has nothing wrong with it."""
        return True

    async def predict(
        self, items: Sequence[Item], truncate: bool = True, deadline_s: float = float("inf")
    ) -> PredictionBatch:
        request = self._admit(tuple(items), truncate, deadline_s)
        try:
            timeout_s = None if deadline_s == math.inf else max(0.0, deadline_s - time.monotonic())
            await asyncio.wait([request.outcome], timeout=timeout_s)
        finally:
            self._leave(request)
        outcome = self._late(request) if request.outcome.cancelled() else request.outcome.result()
        if isinstance(outcome, Problem):
            raise outcome
        return _timed(outcome, time.monotonic() - request.since_s)

    def _admit(self, items: tuple[Item, ...], truncate: bool, deadline_s: float) -> _Request:
        if not self._open:
            raise NotReady("The model is not reachable from here.", retry_after_s=_RESTART_S)
        tokens = sum(self._most_tokens(item) for item in items)
        # A request larger than the whole queue must be possible at some time: when nothing waits.
        if self._waiting and self._waiting_tokens + tokens > self._limits.queue_tokens:
            raise Overloaded("Too many texts wait for the model.", retry_after_s=self._drain.retry_s)
        now_s = time.monotonic()
        if self._replicas():  # without one nothing drains, and who can waits for it to come back
            self._drain.admit(tokens, work_budget_s(deadline_s - now_s))
        self._drain.enqueued(tokens, now_s)
        outcome: asyncio.Future[PredictionBatch | Problem] = asyncio.get_running_loop().create_future()
        request = _Request(items, truncate, deadline_s, now_s, tokens, outcome)
        self._waiting[request] = None
        self._count(request, 1)
        if not self._sending:  # once all that is ready to run has run, so that what comes together leaves together
            self._sending = True
            asyncio.get_running_loop().call_soon(self._send)
        return request

    def _most_tokens(self, item: Item) -> int:
        before = sum(len(turn.text) + _SPECIAL_TOKENS for turn in item.context)
        return min(self.bundle.max_tokens, len(item.text) + len(item.entity or "") + before + _SPECIAL_TOKENS)

    def _leave(self, request: _Request) -> None:
        request.outcome.cancel()  # does nothing to one that is done
        if request.call is not None:
            request.call.abandon()
        elif request in self._waiting:
            self._remove(request)
            self._drain.dropped(request.tokens)

    def _late(self, request: _Request) -> Problem:
        if self._replicas() == 0 or self._last_reply_s < request.since_s:
            return NotReady("No replica of the model has answered.", retry_after_s=_RESTART_S)
        return DeadlineExceeded("The texts were not reached in time.")

    def _remove(self, request: _Request) -> None:
        del self._waiting[request]
        self._count(request, -1)

    def _count(self, request: _Request, sign: int) -> None:
        self._waiting_items += sign * len(request.items)
        self._waiting_tokens += sign * request.tokens
        self._metrics.set_depth(self._waiting_items)

    def _send(self) -> None:
        """Start calls while something waits and there may be more of them."""
        self._sending = False
        while self._waiting and len(self._calls) < CALLS_PER_REPLICA * max(1, self._replicas()):
            gathered = self._gather()
            call = _Call(gathered, sum(request.tokens for request in gathered))
            for request in call.requests:
                request.call = call
            self._calls.add(call)
            # In a context of its own: Serve would take a call made in a request's context for a part of that request,
            # and cancel it for everybody when that one client goes away.
            call.task = asyncio.get_running_loop().create_task(self._run(call), context=Context())

    def _gather(self) -> tuple[_Request, ...]:
        """The oldest that wait: one replica's share of all texts, and no less than fills one batch."""
        share = max(self._limits.batch_items, math.ceil(self._waiting_items / max(1, self._replicas())))
        gathered: list[_Request] = []
        for request in list(self._waiting):
            share -= len(request.items)
            if gathered and share < 0:
                break
            gathered.append(request)
            self._remove(request)
        return tuple(gathered)

    async def _run(self, call: _Call) -> None:
        started_s = time.monotonic()
        try:
            reply = await self._ask(tuple(request.part() for request in call.requests))
            self._deliver(call, reply, started_s)
        except asyncio.CancelledError:  # by us when nobody waits any more, or by a replica that shuts down
            _fail(call, ReplicaLost("The replica that worked on this went away; try again."))
            raise
        except Exception as error:  # whatever went wrong with a call, its callers must not wait for it any longer
            _fail(call, _problem(error))
        finally:
            self._calls.discard(call)
            self._drain.dropped(call.tokens)
            self._send()

    async def _ask(self, parts: tuple[RemoteRequest, ...]) -> RemoteResponse:
        response = self._model.remote(parts)
        try:
            reply: RemoteResponse = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        return reply

    def _deliver(self, call: _Call, reply: RemoteResponse, started_s: float) -> None:
        self._last_reply_s = time.monotonic()
        self._measure(call, reply)
        self._record(call, reply.counts, self._last_reply_s - started_s)
        if reply.digest != self.bundle.digest:  # while one bundle replaces another; its answers would get a wrong name
            raise NotReady("The model is being replaced.", retry_after_s=_RESTART_S)
        for request, answer in zip(call.requests, reply.answers, strict=True):
            request.settle(answer)

    def _measure(self, call: _Call, reply: RemoteResponse) -> None:
        """What was refused or dropped over there was no work."""
        pairs = zip(call.requests, reply.answers, strict=False)  # of different lengths they are a fault, found later
        answered = sum(request.tokens for request, answer in pairs if _worked(answer))
        self._drain.dropped(call.tokens - answered)
        self._drain.completed(answered, self._last_reply_s)
        call.tokens = 0

    def _record(self, call: _Call, counted: EngineCounts, seconds: float) -> None:
        self._call_metrics.record_call(sum(len(request.items) for request in call.requests), seconds)
        for tokenized_s in counted.tokenized_s:
            self._metrics.record_tokenization(tokenized_s)
        for report in counted.batches:
            self._metrics.record_batch(report)


def _fail(call: _Call, problem: Problem) -> None:
    for request in call.requests:
        request.settle(problem)


def _worked(answer: PredictionBatch | Problem) -> bool:
    return isinstance(answer, PredictionBatch) and any(isinstance(outcome, Prediction) for outcome in answer.outcomes)


def _problem(error: Exception) -> Problem:
    """What the callers are told of a call that ended without a reply."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RayActorError | grpc.RpcError):
        return ReplicaLost("The replica that worked on this went away; try again.")
    if isinstance(error, DeploymentUnavailableError):
        return NotReady("The model could not be deployed.", retry_after_s=_RESTART_S)
    return from_unknown(error)


def _timed(answer: PredictionBatch, seconds: float) -> PredictionBatch:
    timings = answer.timings
    queue_s = max(0.0, seconds - timings.tokenize_s - timings.infer_s)
    return replace(answer, timings=replace(timings, queue_s=queue_s))
