"""The gateway's side of the hop: one call per group of requests, a bound on calls, and an end for every caller."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.exceptions import DeploymentUnavailableError

from service.api.gateway import create_app
from service.cluster.remote import CALLS_PER_REPLICA, RemotePredictor
from service.cluster.remote_call import EngineCounts, RemoteRequest, RemoteResponse
from service.errors import DeadlineExceeded, EmptyText, NotReady, Overloaded, Problem, ReplicaLost
from service.inference.batch_policy import BatchLimits
from service.inference.cache import CachedPredictor
from service.inference.predictor import Classification, Item, PredictionBatch, Timings
from service.settings import Settings
from service.telemetry.batch_report import BatchReport
from service.telemetry.metrics import Metrics
from tests.service.telemetry.test_metrics import samples
from tests.support import fake_model as fakes
from tests.support.service_app import assert_problem

pytestmark = pytest.mark.anyio

LIMITS = BatchLimits(batch_tokens=2048, batch_items=16, queue_tokens=2048)
NO_COUNTS = EngineCounts((), ())
TIMEOUT_S = 30.0  # a caller that hangs fails its test
REQUEST: ContextVar[str] = ContextVar("REQUEST", default="none")


class Response:
    """A call under way, as Serve's handle returns it. The test decides its outcome."""

    def __init__(self, requests: Sequence[RemoteRequest]) -> None:
        self.requests = requests
        self.outcome: asyncio.Future[RemoteResponse] = asyncio.get_running_loop().create_future()
        self.cancelled = False
        self.context = REQUEST.get()

    def __await__(self) -> Generator[Any, None, RemoteResponse]:
        return self.outcome.__await__()

    def cancel(self) -> None:
        self.cancelled = True

    @property
    def texts(self) -> list[str]:
        return [item.text for request in self.requests for item in request.items]

    def reply(self, counts: EngineCounts = NO_COUNTS, digest: str = "f" * 64) -> None:
        self.outcome.set_result(RemoteResponse(tuple(answer(request) for request in self.requests), counts, digest))


def answer(request: RemoteRequest) -> PredictionBatch:
    """Return an answer in which the label of each text is the text."""
    outcomes = tuple(Classification(3, False, 1, {item.text: 1.0}) for item in request.items)
    return PredictionBatch(outcomes, Timings(0.001, 0.002, 0.003))


class Handle:
    """A Serve handle with replicas that answer only when the test says so."""

    def __init__(self, replicas: int = 1) -> None:
        self.replicas = replicas
        self.sent: list[Response] = []
        self.failure: Exception | None = None

    @property
    def predict(self) -> Handle:
        return self

    def remote(self, requests: Sequence[RemoteRequest]) -> Response:
        if self.failure:
            raise self.failure
        self.sent.append(Response(requests))
        return self.sent[-1]

    def count(self) -> int:
        return self.replicas

    @property
    def open(self) -> list[Response]:
        return [response for response in self.sent if not response.outcome.done()]


class Clock:
    """The real time, until the test sets it."""

    def __init__(self) -> None:
        self.now_s: float | None = None

    def __call__(self) -> float:
        return time.monotonic() if self.now_s is None else self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def handle() -> Handle:
    return Handle()


@pytest.fixture
async def remote(tmp_path: Path, metrics: Metrics, handle: Handle, clock: Clock) -> AsyncIterator[RemotePredictor]:
    counts = (metrics.task("sentiment"), metrics.calls("sentiment"))
    predictor = RemotePredictor(fakes.make_bundle(tmp_path), handle, handle.count, LIMITS, *counts, clock=clock)
    await predictor.start()
    yield predictor
    async with answering(handle):
        await asyncio.wait_for(predictor.stop(), TIMEOUT_S)


@asynccontextmanager
async def answering(handle: Handle) -> AsyncIterator[None]:
    """Answer every call while the block runs."""

    async def reply_to_all() -> None:
        while True:
            for response in handle.open:
                response.reply()
            await asyncio.sleep(0)

    task = asyncio.create_task(reply_to_all())
    try:
        yield
    finally:
        task.cancel()


async def run_pending_tasks() -> None:
    """Run everything that can run without a reply."""
    for _ in range(10):
        await asyncio.sleep(0)


async def send(remote: RemotePredictor, *texts: str, **options: Any) -> asyncio.Task[PredictionBatch]:
    task = asyncio.create_task(remote.predict([Item(text) for text in texts], **options))
    await run_pending_tasks()
    return task


def labels(batch: PredictionBatch) -> list[str]:
    return [fakes.label_or_code(outcome) for outcome in batch.outcomes]


async def fill_calls(remote: RemotePredictor, handle: Handle) -> list[asyncio.Task[PredictionBatch]]:
    """Start as many calls as the bound allows, with one text each."""
    return [await send(remote, f"busy {index}") for index in range(CALLS_PER_REPLICA * handle.replicas)]


async def problem(task: asyncio.Task[PredictionBatch]) -> Problem:
    with pytest.raises(Problem) as raised:
        await asyncio.wait_for(task, TIMEOUT_S)
    return raised.value


async def test_an_idle_model_gets_calls_immediately_and_a_busy_one_gets_the_rest_in_one_call(
    remote: RemotePredictor, handle: Handle
) -> None:
    first = await fill_calls(remote, handle)
    assert [response.texts for response in handle.sent] == [["busy 0"], ["busy 1"], ["busy 2"], ["busy 3"]]
    rest = [await send(remote, f"a {index}", f"b {index}") for index in range(20)]
    assert len(handle.sent) == 4
    handle.sent[1].reply()
    await run_pending_tasks()
    assert len(handle.sent) == 5
    assert handle.sent[4].texts == [f"{letter} {index}" for index in range(20) for letter in "ab"]
    async with answering(handle):
        assert [labels(await task) for task in first] == [[f"busy {index}"] for index in range(4)]
        assert [labels(await task) for task in rest] == [[f"a {index}", f"b {index}"] for index in range(20)]
    assert len(handle.sent) == 5


async def test_simultaneous_requests_leave_in_one_call(remote: RemotePredictor, handle: Handle) -> None:
    tasks = [asyncio.create_task(remote.predict([Item(f"{index}")])) for index in range(9)]
    await run_pending_tasks()
    assert [len(response.requests) for response in handle.sent] == [9]
    handle.sent[0].reply()
    assert [labels(await task) for task in tasks] == [[f"{index}"] for index in range(9)]


async def test_each_request_crosses_with_its_flag_and_its_time(remote: RemotePredictor, handle: Handle) -> None:
    first = await fill_calls(remote, handle)
    now_s = time.monotonic()
    tasks = [
        await send(remote, "cut"),
        await send(remote, "not to be cut", truncate=False, deadline_s=now_s + 100),
        await send(remote, "soon", deadline_s=now_s + 50),
    ]
    handle.sent[0].reply()
    await run_pending_tasks()
    forever, later, soon = handle.sent[4].requests
    assert [request.truncate for request in handle.sent[4].requests] == [True, False, True]
    assert forever.remaining_s == float("inf")
    assert 90 < later.remaining_s <= 100 - 0.05  # the way back takes time too
    assert 40 < soon.remaining_s <= 50 - 0.05
    async with answering(handle):
        await asyncio.gather(*first, *tasks)


@pytest.mark.parametrize("handle", [Handle(3)])
async def test_replicas_share_the_queue_but_get_at_least_a_batch_each(remote: RemotePredictor, handle: Handle) -> None:
    first = await fill_calls(remote, handle)
    tasks = [await send(remote, f"{index}") for index in range(90)]
    for response in handle.sent[:6]:
        response.reply()
        await run_pending_tasks()
    assert [len(response.requests) for response in handle.sent[12:]] == [30, 20, 16, 16, 8]
    async with answering(handle):
        await asyncio.gather(*first, *tasks)


async def test_a_request_is_never_split(remote: RemotePredictor, handle: Handle) -> None:
    handle.replicas = 2
    tasks = [asyncio.create_task(remote.predict([Item("good")] * size)) for size in (1, 256, 1)]
    await run_pending_tasks()
    assert [[len(request.items) for request in response.requests] for response in handle.sent] == [[1], [256], [1]]
    async with answering(handle):
        await asyncio.gather(*tasks)


async def test_another_replica_raises_the_bound_on_calls(remote: RemotePredictor, handle: Handle) -> None:
    first = await fill_calls(remote, handle)
    waiting = [await send(remote, "good") for _ in range(4)]
    assert len(handle.sent) == CALLS_PER_REPLICA
    handle.replicas = 2
    more = [await send(remote, "bad") for _ in range(2)]
    assert len(handle.sent) > CALLS_PER_REPLICA
    async with answering(handle):
        await asyncio.gather(*first, *waiting, *more)


async def test_a_full_queue_refuses_with_a_retry_time(remote: RemotePredictor, handle: Handle) -> None:
    first = await fill_calls(remote, handle)
    await asyncio.sleep(0.1)  # so that at most 360 tokens per second are measured
    handle.sent[0].reply()
    await run_pending_tasks()
    first.append(await send(remote, "busy again"))
    long = "x" * 1000  # counts as 512 tokens, the maximum
    waiting = [await send(remote, *[long] * 3), await send(remote, long)]
    refused = await problem(await send(remote, "one more"))
    assert type(refused) is Overloaded
    assert int(refused.headers["Retry-After"]) >= 5
    handle.sent[1].reply()
    await run_pending_tasks()
    waiting.append(await send(remote, "one more"))
    async with answering(handle):
        await asyncio.gather(*first, *waiting)


async def test_an_oversized_request_is_accepted_while_nothing_waits(remote: RemotePredictor, handle: Handle) -> None:
    tasks = [*await fill_calls(remote, handle), await send(remote, *["x" * 1000] * 5)]
    async with answering(handle):
        await asyncio.gather(*tasks)


async def measure_slow_replica(remote: RemotePredictor, handle: Handle, clock: Clock) -> None:
    """Let the predictor measure 103 tokens per second. The clock stands still afterwards."""
    clock.now_s = 0.0
    first = await send(remote, "x" * 100)
    clock.now_s = 1.0
    handle.sent[0].reply()
    await first


async def test_a_request_that_would_be_late_is_refused_on_arrival(
    remote: RemotePredictor, handle: Handle, clock: Clock
) -> None:
    await measure_slow_replica(remote, handle, clock)
    large = await send(remote, "x" * 500, deadline_s=2.0)  # 4.9 s of work, but nothing is ahead of it
    refused = await problem(await send(remote, "x" * 50, deadline_s=7.0))
    assert type(refused) is Overloaded
    assert refused.headers == {"Retry-After": "5"}
    patient = await send(remote, "x" * 50, deadline_s=10.0)
    async with answering(handle):
        await asyncio.gather(large, patient)


async def test_refusals_do_not_count_as_throughput(remote: RemotePredictor, handle: Handle, clock: Clock) -> None:
    await measure_slow_replica(remote, handle, clock)
    refused, large = await send(remote, "x" * 500), await send(remote, "x" * 500)
    handle.sent[1].outcome.set_result(RemoteResponse((Overloaded("Full.", retry_after_s=1),), NO_COUNTS, "f" * 64))
    await problem(refused)
    assert type(await problem(await send(remote, "x" * 50, deadline_s=7.0))) is Overloaded
    async with answering(handle):
        await large


async def test_without_a_replica_the_old_throughput_refuses_nobody(
    remote: RemotePredictor, handle: Handle, clock: Clock
) -> None:
    await measure_slow_replica(remote, handle, clock)
    large = await send(remote, "x" * 500)
    handle.replicas = 0
    waits = await send(remote, "x" * 50, deadline_s=7.0)
    async with answering(handle):
        await asyncio.gather(large, waits)


async def test_a_failed_call_no_longer_counts_as_pending(remote: RemotePredictor, handle: Handle, clock: Clock) -> None:
    await measure_slow_replica(remote, handle, clock)
    large = await send(remote, "x" * 500)
    handle.sent[1].outcome.set_exception(grpc.RpcError())
    await problem(large)
    async with answering(handle):
        await (await send(remote, "x" * 500, deadline_s=2.0))


async def test_an_abandoned_request_no_longer_counts_as_pending(
    remote: RemotePredictor, handle: Handle, clock: Clock
) -> None:
    await measure_slow_replica(remote, handle, clock)
    first = await fill_calls(remote, handle)
    gone = await send(remote, "x" * 500)
    gone.cancel()
    await run_pending_tasks()
    stays = await send(remote, "x" * 50, deadline_s=3.0)
    async with answering(handle):
        await asyncio.gather(*first, stays)


async def test_the_timeout_of_a_caller_crosses_with_its_request(
    remote: RemotePredictor, handle: Handle, metrics: Metrics
) -> None:
    app = create_app({"sentiment": remote}, Settings(), metrics)
    async with (
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed") as client,
        answering(handle),
    ):
        await client.post("/v1/sentiment", json={"inputs": "good"}, headers={"X-Request-Timeout-Ms": "4000"})
        await client.post("/v1/sentiment", json={"inputs": "good"}, headers={"X-Request-Timeout-Ms": "99000"})
    stated, capped = (response.requests[0].remaining_s for response in handle.sent)
    assert 2 < stated <= 4 - 2 * 0.05  # a hop back to this gateway, and one to the caller
    assert 6 < capped <= 10 - 2 * 0.05


async def test_empty_texts_count_in_the_queue(remote: RemotePredictor, handle: Handle) -> None:
    first = await fill_calls(remote, handle)
    waiting = [await send(remote, *[""] * 600)]
    waiting.append(await send(remote, *[""] * 60))
    assert type(await problem(await send(remote, *[""] * 60))) is Overloaded
    async with answering(handle):
        await asyncio.gather(*first, *waiting)


async def test_a_request_abandoned_in_the_queue_is_never_sent(
    remote: RemotePredictor, handle: Handle, metrics: Metrics
) -> None:
    first = await fill_calls(remote, handle)
    gone, stays = await send(remote, "gone", "gone"), await send(remote, "stays")
    assert samples(metrics)["heed_queue_depth", "sentiment"] == 3
    gone.cancel()
    await run_pending_tasks()
    assert samples(metrics)["heed_queue_depth", "sentiment"] == 1
    async with answering(handle):
        assert labels(await stays) == ["stays"]
        await asyncio.gather(*first)
    assert handle.sent[-1].texts == ["stays"]


async def test_a_call_is_cancelled_once_all_its_callers_have_left(remote: RemotePredictor, handle: Handle) -> None:
    tasks = [asyncio.create_task(remote.predict([Item(f"{index}")])) for index in range(2)]
    await run_pending_tasks()
    (sent,) = handle.sent
    tasks[0].cancel()
    await run_pending_tasks()
    assert not sent.cancelled
    tasks[1].cancel()
    await run_pending_tasks()
    assert sent.cancelled
    assert (await asyncio.gather(*tasks, return_exceptions=True)) != []


async def test_a_late_request_frees_its_call(remote: RemotePredictor, handle: Handle) -> None:
    blocked = [await send(remote, "good", deadline_s=time.monotonic() + 0.05) for _ in range(CALLS_PER_REPLICA)]
    waiting = await send(remote, "still wanted")
    assert {type(await problem(task)) for task in blocked} == {NotReady}
    async with answering(handle):
        assert labels(await waiting) == ["still wanted"]


async def test_without_a_replica_requests_wait_until_their_deadline_for_one(
    remote: RemotePredictor, handle: Handle
) -> None:
    handle.replicas = 0
    assert not remote.ready
    assert remote.healthy
    sent, waiting = [
        [await send(remote, "good", deadline_s=time.monotonic() + 0.2) for _ in range(count)]
        for count in (CALLS_PER_REPLICA, 3)
    ]
    patient = await send(remote, "patient")
    problems = [await problem(task) for task in [*sent, *waiting]]
    assert {type(each) for each in problems} == {NotReady}
    assert all(int(each.headers["Retry-After"]) >= 1 for each in problems)
    handle.replicas = 1
    assert remote.ready
    async with answering(handle):
        assert labels(await patient) == ["patient"]


async def test_concurrent_callers_of_one_text_get_the_same_problem(
    remote: RemotePredictor, handle: Handle, metrics: Metrics
) -> None:
    handle.replicas = 0
    cache = CachedPredictor(remote, 0, metrics.task("sentiment"))
    now_s = time.monotonic()
    tasks = [
        asyncio.create_task(cache.predict([Item("same")], deadline_s=now_s + seconds)) for seconds in (0.2, 0.3, 0.4)
    ]
    await run_pending_tasks()
    assert [response.texts for response in handle.sent] == [["same"]]
    assert {type(await problem(task)) for task in tasks} == {NotReady}


async def test_a_gateway_without_a_replica_is_healthy_but_not_ready(
    remote: RemotePredictor, handle: Handle, metrics: Metrics
) -> None:
    handle.replicas = 0
    app = create_app({"sentiment": remote}, Settings(request_timeout_s=0.1), metrics)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed") as client:
        assert_problem(await client.post("/v1/sentiment", json={"inputs": "good"}), 503, "not_ready")
        assert_problem(await client.get("/readyz"), 503, "not_ready")
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/v1/models")).json()["models"][0]["version"] == "1.2.3"


@pytest.mark.slow
async def test_a_model_that_answers_other_requests_is_late_not_gone(remote: RemotePredictor, handle: Handle) -> None:
    slow = await send(remote, "slow", deadline_s=time.monotonic() + 1.0)
    other = await send(remote, "other")
    handle.sent[1].reply()
    await other
    assert type(await problem(slow)) is DeadlineExceeded


@pytest.mark.slow
async def test_a_late_request_without_any_replica_gets_not_ready(remote: RemotePredictor, handle: Handle) -> None:
    late = await send(remote, "late", deadline_s=time.monotonic() + 0.5)
    other = await send(remote, "other")
    handle.sent[1].reply()
    await other
    handle.replicas = 0
    assert type(await problem(late)) is NotReady


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (grpc.RpcError(), ReplicaLost),
        (ActorDiedError(), ReplicaLost),
        (ActorUnavailableError("away", b"\0" * 16), ReplicaLost),
        (asyncio.CancelledError(), ReplicaLost),
        (DeploymentUnavailableError(None), NotReady),
        (ValueError("secret"), Problem),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value.__name__,
)
async def test_a_failed_call_fails_only_its_callers_immediately(
    remote: RemotePredictor, handle: Handle, failure: BaseException, expected: type[Problem]
) -> None:
    together = [asyncio.create_task(remote.predict([Item("good")])) for _ in range(3)]
    await run_pending_tasks()
    other = await send(remote, "other")
    handle.sent[0].outcome.set_exception(failure)
    problems = [await problem(task) for task in together]
    assert {type(each) for each in problems} == {expected}
    assert "secret" not in problems[0].detail
    assert not other.done()
    async with answering(handle):
        assert labels(await other) == ["other"]
        assert labels(await remote.predict([Item("next")])) == ["next"]


async def test_a_handle_that_cannot_send_fails_the_caller(remote: RemotePredictor, handle: Handle) -> None:
    handle.failure = RuntimeError("no")
    assert type(await problem(await send(remote, "good"))) is Problem


async def test_a_reply_of_the_wrong_length_fails_the_callers(remote: RemotePredictor, handle: Handle) -> None:
    tasks = [asyncio.create_task(remote.predict([Item("good")])) for _ in range(2)]
    await run_pending_tasks()
    handle.sent[0].outcome.set_result(RemoteResponse((answer(handle.sent[0].requests[0]),), NO_COUNTS, "f" * 64))
    assert type(await problem(tasks[1])) is Problem


async def test_a_problem_of_one_request_reaches_only_its_caller(remote: RemotePredictor, handle: Handle) -> None:
    tasks = [asyncio.create_task(remote.predict([Item("good")])) for _ in range(2)]
    await run_pending_tasks()
    partly = PredictionBatch((EmptyText("Empty."),), Timings(0, 0, 0))
    handle.sent[0].outcome.set_result(
        RemoteResponse((Overloaded("Full.", retry_after_s=3), partly), NO_COUNTS, "f" * 64)
    )
    assert (await problem(tasks[0])).headers == {"Retry-After": "3"}
    assert labels(await tasks[1]) == ["empty_text"]


async def test_answers_of_another_bundle_are_refused(remote: RemotePredictor, handle: Handle) -> None:
    task = await send(remote, "good")
    handle.sent[0].reply(digest="0" * 64)
    assert type(await problem(task)) is NotReady


async def test_stopping_finishes_accepted_requests_and_refuses_new_ones(
    remote: RemotePredictor, handle: Handle
) -> None:
    accepted = [*await fill_calls(remote, handle), await send(remote, "waits")]
    stopping = asyncio.create_task(remote.stop())
    await run_pending_tasks()
    assert not remote.ready
    assert not stopping.done()
    assert type(await problem(await send(remote, "new"))) is NotReady
    async with answering(handle):
        await stopping
        assert labels((await asyncio.gather(*accepted))[-1]) == ["waits"]


async def test_a_call_runs_outside_the_context_of_a_request(remote: RemotePredictor, handle: Handle) -> None:
    """Serve reads from the context which request a call belongs to, and cancels it when that client disconnects."""
    REQUEST.set("mine")
    task = await send(remote, "good")
    assert handle.sent[0].context == "none"
    handle.sent[0].reply()
    await task


async def test_the_timings_add_up_to_the_time_of_the_caller(remote: RemotePredictor, handle: Handle) -> None:
    started_s = time.monotonic()
    task = await send(remote, "good")
    await asyncio.sleep(0.1)
    handle.sent[0].reply()
    timings = (await task).timings
    total_s = time.monotonic() - started_s
    assert (timings.tokenize_s, timings.infer_s) == (0.001, 0.003)
    assert 0.1 <= sum((timings.tokenize_s, timings.queue_s, timings.infer_s)) <= total_s


async def test_counts_of_the_replica_are_recorded_in_the_gateway(
    remote: RemotePredictor, handle: Handle, metrics: Metrics
) -> None:
    task = await send(remote, "good", "bad")
    report = BatchReport(queued_s=(0.1, 0.2), tokens=8, padded_tokens=10, infer_s=0.5)
    handle.sent[0].reply(EngineCounts((report,), (0.01,)))
    await task
    sampled = samples(metrics)
    assert sampled["heed_tokenize_seconds_count", "sentiment"] == 1
    assert sampled["heed_queue_seconds_count", "sentiment"] == 2
    assert sampled["heed_infer_seconds_sum", "sentiment"] == 0.5
    assert sampled["heed_call_items_sum", "sentiment"] == 2
    assert sampled["heed_call_seconds_count", "sentiment"] == 1
    assert sampled["heed_queue_depth", "sentiment"] == 0
