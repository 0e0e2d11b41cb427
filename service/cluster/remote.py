"""A model in separate replicas, across one hop: waiting requests travel together, so each call pays for the hop once.

There is no timer: requests that arrive while calls are under way leave with the next call. Calls are bounded per
replica. The bound lets a replica receive its next texts before it finishes the current ones, and lets each call carry
many. Every caller gets an answer or a problem, whatever happens to a replica. This module knows Serve's handle, but
neither HTTP nor models.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace

import grpc
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from models.bundle import Bundle
from service.cluster.remote_call import EngineCounts, RemoteRequest, RemoteResponse
from service.errors import DeadlineExceeded, NotReady, Overloaded, Problem, ReplicaLost, from_unknown
from service.fairness.client import CLIENT
from service.inference.admission import ThroughputEstimator, work_budget_s
from service.inference.batch_policy import BatchLimits
from service.inference.predictor import Item, Prediction, PredictionBatch
from service.telemetry.logs import REQUEST_ID
from service.telemetry.metrics import CallMetrics, TaskMetrics

# The texts of two calls end in one batch, so their responses leave together. Two more calls must already be there, or
# the replica would idle during a hop.
CALLS_PER_REPLICA = 4

_RESTART_S = 5.0  # about the time in which a replica is replaced
_MAX_SPECIAL_TOKENS = 3  # around a text and its entity


@dataclass(slots=True, eq=False)
class _Request:
    items: tuple[Item, ...]
    truncate: bool
    deadline_s: float
    arrived_s: float
    tokens: int  # an upper bound, because nothing is tokenised yet
    outcome: asyncio.Future[PredictionBatch | Problem]
    call: _Call | None = None
    request_id: str = field(default_factory=REQUEST_ID.get)
    client: str = field(default_factory=CLIENT.get)

    def to_remote(self, now_s: float) -> RemoteRequest:
        return RemoteRequest(
            self.items, self.truncate, work_budget_s(max(0.0, self.deadline_s - now_s)), self.request_id, self.client
        )

    def resolve(self, outcome: PredictionBatch | Problem) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


@dataclass(slots=True, eq=False)
class _Call:
    requests: tuple[_Request, ...]
    tokens: int  # 0 after the response
    task: asyncio.Task[None] | None = None

    def cancel_if_abandoned(self) -> None:
        """Cancel the whole call once none of its requests has a caller."""
        if self.task and not self.task.done() and all(request.outcome.done() for request in self.requests):
            self.task.cancel()


class RemotePredictor:
    """A predictor that sends its texts to model replicas."""

    def __init__(
        self,
        bundle: Bundle,
        handle: DeploymentHandle,
        replica_count: Callable[[], int],
        limits: BatchLimits,
        metrics: TaskMetrics,
        call_metrics: CallMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a predictor that is not started. `replica_count` counts the replicas that the handle knows.

        `limits` are those of the engine in a replica. Deadlines are in seconds of `clock`.
        """
        self.bundle = bundle
        self._handle = handle
        self._replica_count = replica_count
        self._limits = limits
        self._metrics = metrics
        self._call_metrics = call_metrics
        self._clock = clock
        self._open = False
        self._waiting: dict[_Request, None] = {}  # oldest first
        self._waiting_items = 0
        self._waiting_tokens = 0
        self._calls: set[_Call] = set()
        self._send_scheduled = False
        self._throughput = ThroughputEstimator()
        self._last_reply_s = -math.inf

    async def start(self) -> None:
        """Open the predictor without waiting for a replica: a gateway without one answers 503."""
        self._model = self._handle.predict  # the first use creates the handle's router, in this event loop
        self._open = True

    async def stop(self) -> None:
        """Refuse new requests and wait until the accepted ones are answered."""
        self._open = False
        self._send()
        while self._calls:
            await asyncio.wait([call.task for call in self._calls if call.task])

    @property
    def ready(self) -> bool:
        return self._open and self._replica_count() > 0

    @property
    def healthy(self) -> bool:
        """True, because this process needs no restart when it lacks a replica."""
        return True

    async def predict(
        self, items: Sequence[Item], truncate: bool = True, deadline_s: float = float("inf")
    ) -> PredictionBatch:
        request = self._admit(tuple(items), truncate, deadline_s)
        try:
            timeout_s = None if deadline_s == math.inf else max(0.0, deadline_s - self._clock())
            await asyncio.wait([request.outcome], timeout=timeout_s)
        finally:
            self._release(request)
        outcome = self._timeout_problem(request) if request.outcome.cancelled() else request.outcome.result()
        if isinstance(outcome, Problem):
            raise outcome
        return _with_queue_time(outcome, self._clock() - request.arrived_s)

    def _admit(self, items: tuple[Item, ...], truncate: bool, deadline_s: float) -> _Request:
        if not self._open:
            raise NotReady("The model is not reachable from here.", retry_after_s=_RESTART_S)
        tokens = sum(self._max_tokens(item) for item in items)
        # A request larger than the queue must be possible at some time. That is when nothing waits.
        if self._waiting and self._waiting_tokens + tokens > self._limits.queue_tokens:
            raise Overloaded("Too many texts wait for the model.", retry_after_s=self._throughput.retry_s)
        now_s = self._clock()
        if self._replica_count():  # without a replica the queue stands still, and requests wait for one to return
            self._throughput.admit(tokens, work_budget_s(deadline_s - now_s))
        self._throughput.enqueued(tokens, now_s)
        outcome: asyncio.Future[PredictionBatch | Problem] = asyncio.get_running_loop().create_future()
        request = _Request(items, truncate, deadline_s, now_s, tokens, outcome)
        self._waiting[request] = None
        self._count_waiting(request, 1)
        if not self._send_scheduled:  # after all tasks that can run now, so that simultaneous requests leave together
            self._send_scheduled = True
            asyncio.get_running_loop().call_soon(self._send)
        return request

    def _max_tokens(self, item: Item) -> int:
        context = sum(len(turn.text) + _MAX_SPECIAL_TOKENS for turn in item.context)
        return min(self.bundle.max_tokens, len(item.text) + len(item.entity or "") + context + _MAX_SPECIAL_TOKENS)

    def _release(self, request: _Request) -> None:
        request.outcome.cancel()  # has no effect on a resolved outcome
        if request.call is not None:
            request.call.cancel_if_abandoned()
        elif request in self._waiting:
            self._remove(request)
            self._throughput.dropped(request.tokens)

    def _timeout_problem(self, request: _Request) -> Problem:
        if self._replica_count() == 0 or self._last_reply_s < request.arrived_s:
            return NotReady("No replica of the model has answered.", retry_after_s=_RESTART_S)
        return DeadlineExceeded("The texts were not reached in time.")

    def _remove(self, request: _Request) -> None:
        del self._waiting[request]
        self._count_waiting(request, -1)

    def _count_waiting(self, request: _Request, sign: int) -> None:
        self._waiting_items += sign * len(request.items)
        self._waiting_tokens += sign * request.tokens
        self._metrics.set_depth(self._waiting_items)

    def _send(self) -> None:
        """Start calls while requests wait and the bound on calls allows more."""
        self._send_scheduled = False
        while self._waiting and len(self._calls) < CALLS_PER_REPLICA * max(1, self._replica_count()):
            requests = self._gather()
            call = _Call(requests, sum(request.tokens for request in requests))
            for request in call.requests:
                request.call = call
            self._calls.add(call)
            # In an empty context: Serve takes a call made in a request's context for a part of that request, and would
            # cancel it for all callers when that client disconnects.
            call.task = asyncio.get_running_loop().create_task(self._run(call), context=Context())

    def _gather(self) -> tuple[_Request, ...]:
        """Remove and return the oldest requests: one replica's share of all texts, but at least a full batch."""
        share = max(self._limits.batch_items, math.ceil(self._waiting_items / max(1, self._replica_count())))
        requests: list[_Request] = []
        for request in list(self._waiting):
            share -= len(request.items)
            if requests and share < 0:
                break
            requests.append(request)
            self._remove(request)
        return tuple(requests)

    async def _run(self, call: _Call) -> None:
        started_s = self._clock()
        try:
            response = await self._call_replica(tuple(request.to_remote(started_s) for request in call.requests))
            self._deliver(call, response, started_s)
        except asyncio.CancelledError:  # by us because every caller has left, or by a replica that shuts down
            _fail(call, ReplicaLost("The replica that handled this request went away. Try again."))
            raise
        except Exception as error:  # after any fault, the callers must not wait any longer
            _fail(call, _problem(error, call))
        finally:
            self._calls.discard(call)
            self._throughput.dropped(call.tokens)
            self._send()

    async def _call_replica(self, requests: tuple[RemoteRequest, ...]) -> RemoteResponse:
        pending = self._model.remote(requests)
        try:
            response: RemoteResponse = await pending
        except asyncio.CancelledError:
            pending.cancel()
            raise
        return response

    def _deliver(self, call: _Call, response: RemoteResponse, started_s: float) -> None:
        self._last_reply_s = self._clock()
        self._measure_throughput(call, response)
        self._record(call, response.counts, self._last_reply_s - started_s)
        if response.digest != self.bundle.digest:  # during a replacement, answers would carry the wrong bundle's name
            raise NotReady("The model is being replaced.", retry_after_s=_RESTART_S)
        for request, answer in zip(call.requests, response.answers, strict=True):
            request.resolve(answer)

    def _measure_throughput(self, call: _Call, response: RemoteResponse) -> None:
        """Count the answered requests as work. The replica did no work for those it refused or dropped."""
        pairs = zip(call.requests, response.answers, strict=False)  # `_deliver` raises if the lengths differ
        answered = sum(request.tokens for request, answer in pairs if _has_prediction(answer))
        self._throughput.dropped(call.tokens - answered)
        self._throughput.completed(answered, self._last_reply_s)
        call.tokens = 0

    def _record(self, call: _Call, counts: EngineCounts, seconds: float) -> None:
        self._call_metrics.record_call(sum(len(request.items) for request in call.requests), seconds)
        for tokenized_s in counts.tokenized_s:
            self._metrics.record_tokenization(tokenized_s)
        for report in counts.batches:
            self._metrics.record_batch(report)


def _fail(call: _Call, problem: Problem) -> None:
    for request in call.requests:
        request.resolve(problem)


def _has_prediction(answer: PredictionBatch | Problem) -> bool:
    return isinstance(answer, PredictionBatch) and any(isinstance(outcome, Prediction) for outcome in answer.outcomes)


def _problem(error: Exception, call: _Call) -> Problem:
    """Return the problem for the callers of a call that failed."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RayActorError | grpc.RpcError):
        return ReplicaLost("The replica that handled this request went away. Try again.")
    if isinstance(error, DeploymentUnavailableError):
        return NotReady("The model could not be deployed.", retry_after_s=_RESTART_S)
    return from_unknown(error, request_ids=sorted({request.request_id for request in call.requests} - {""}))


def _with_queue_time(answer: PredictionBatch, seconds: float) -> PredictionBatch:
    timings = answer.timings
    queue_s = max(0.0, seconds - timings.tokenize_s - timings.infer_s)
    return replace(answer, timings=replace(timings, queue_s=queue_s))
