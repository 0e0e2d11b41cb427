"""The gateway's side of the hop: one call per gathered group, a bound on calls, and every caller ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.exceptions import DeploymentUnavailableError

from service.api.gateway import create_app
from service.cluster import remote as remote_module
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
NOTHING = EngineCounts((), ())
PATIENCE_S = 30.0  # a caller that hangs fails its test
REQUEST: ContextVar[str] = ContextVar("REQUEST", default="none")


class Response:
    """A call under way, as Serve's handle returns it; the test decides what becomes of it."""

    def __init__(self, parts: Sequence[RemoteRequest]) -> None:
        self.parts = parts
        self.outcome: asyncio.Future[RemoteResponse] = asyncio.get_running_loop().create_future()
        self.cancelled = False
        self.context = REQUEST.get()

    def __await__(self) -> Generator[Any, None, RemoteResponse]:
        return self.outcome.__await__()

    def cancel(self) -> None:
        self.cancelled = True

    @property
    def texts(self) -> list[str]:
        return [item.text for part in self.parts for item in part.items]

    def reply(self, counted: EngineCounts = NOTHING, digest: str = "f" * 64) -> None:
        self.outcome.set_result(RemoteResponse(tuple(answered(part) for part in self.parts), counted, digest))


def answered(part: RemoteRequest) -> PredictionBatch:
    """Each text comes back as its own label."""
    outcomes = tuple(Classification(3, False, 1, {item.text: 1.0}) for item in part.items)
    return PredictionBatch(outcomes, Timings(0.001, 0.002, 0.003))


class Handle:
    """A Serve handle with replicas that do nothing by themselves."""

    def __init__(self, replicas: int = 1) -> None:
        self.replicas = replicas
        self.sent: list[Response] = []
        self.failure: Exception | None = None

    @property
    def predict(self) -> Handle:
        return self

    def remote(self, parts: Sequence[RemoteRequest]) -> Response:
        if self.failure:
            raise self.failure
        self.sent.append(Response(parts))
        return self.sent[-1]

    def count(self) -> int:
        return self.replicas

    @property
    def open(self) -> list[Response]:
        return [response for response in self.sent if not response.outcome.done()]


@pytest.fixture
def handle() -> Handle:
    return Handle()


@pytest.fixture
async def remote(tmp_path: Path, metrics: Metrics, handle: Handle) -> AsyncIterator[RemotePredictor]:
    made = RemotePredictor(
        fakes.make_bundle(tmp_path), handle, handle.count, LIMITS, metrics.task("sentiment"), metrics.calls("sentiment")
    )
    await made.start()
    yield made
    async with answering(handle):
        await asyncio.wait_for(made.stop(), PATIENCE_S)


@asynccontextmanager
async def answering(handle: Handle) -> AsyncIterator[None]:
    """Every call gets its reply while the block runs."""

    async def answer() -> None:
        while True:
            for response in handle.open:
                response.reply()
            await asyncio.sleep(0)

    task = asyncio.create_task(answer())
    try:
        yield
    finally:
        task.cancel()


async def settled() -> None:
    """Everything that can run without a reply has run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def ask(remote: RemotePredictor, *texts: str, **more: Any) -> asyncio.Task[PredictionBatch]:
    task = asyncio.create_task(remote.predict([Item(text) for text in texts], **more))
    await settled()
    return task


def labels(answer: PredictionBatch) -> list[str]:
    return [fakes.label_or_code(one) for one in answer.outcomes]


async def busy(remote: RemotePredictor, handle: Handle) -> list[asyncio.Task[PredictionBatch]]:
    """As many calls as there may be, one text each."""
    return [await ask(remote, f"busy {number}") for number in range(CALLS_PER_REPLICA * handle.replicas)]


async def problem(task: asyncio.Task[PredictionBatch]) -> Problem:
    with pytest.raises(Problem) as raised:
        await asyncio.wait_for(task, PATIENCE_S)
    return raised.value


async def test_an_idle_model_is_asked_at_once_and_a_busy_one_in_one_call(
    remote: RemotePredictor, handle: Handle
) -> None:
    first = await busy(remote, handle)
    assert [response.texts for response in handle.sent] == [["busy 0"], ["busy 1"], ["busy 2"], ["busy 3"]]
    rest = [await ask(remote, f"a {number}", f"b {number}") for number in range(20)]
    assert len(handle.sent) == 4
    handle.sent[1].reply()
    await settled()
    assert len(handle.sent) == 5
    assert handle.sent[4].texts == [f"{letter} {number}" for number in range(20) for letter in "ab"]
    async with answering(handle):
        assert [labels(await task) for task in first] == [[f"busy {number}"] for number in range(4)]
        assert [labels(await task) for task in rest] == [[f"a {number}", f"b {number}"] for number in range(20)]
    assert len(handle.sent) == 5


async def test_what_comes_together_leaves_together(remote: RemotePredictor, handle: Handle) -> None:
    tasks = [asyncio.create_task(remote.predict([Item(f"{number}")])) for number in range(9)]
    await settled()
    assert [len(response.parts) for response in handle.sent] == [9]
    handle.sent[0].reply()
    assert [labels(await task) for task in tasks] == [[f"{number}"] for number in range(9)]


async def test_each_part_crosses_with_its_own_flag_and_its_own_time(remote: RemotePredictor, handle: Handle) -> None:
    first = await busy(remote, handle)
    now_s = time.monotonic()
    tasks = [
        await ask(remote, "cut"),
        await ask(remote, "not to be cut", truncate=False, deadline_s=now_s + 100),
        await ask(remote, "soon", deadline_s=now_s + 50),
    ]
    handle.sent[0].reply()
    await settled()
    forever, later, soon = handle.sent[4].parts
    assert [part.truncate for part in handle.sent[4].parts] == [True, False, True]
    assert forever.remaining_s == float("inf")
    assert 90 < later.remaining_s <= 100 - 0.05  # the way back takes time too
    assert 40 < soon.remaining_s <= 50 - 0.05
    async with answering(handle):
        await asyncio.gather(*first, *tasks)


@pytest.mark.parametrize("handle", [Handle(3)])
async def test_replicas_share_what_waits_but_no_less_than_a_batch_each(remote: RemotePredictor, handle: Handle) -> None:
    first = await busy(remote, handle)
    tasks = [await ask(remote, f"{number}") for number in range(90)]
    for response in handle.sent[:6]:
        response.reply()
        await settled()
    assert [len(response.parts) for response in handle.sent[12:]] == [30, 20, 16, 16, 8]
    async with answering(handle):
        await asyncio.gather(*first, *tasks)


async def test_a_request_is_never_divided(remote: RemotePredictor, handle: Handle) -> None:
    handle.replicas = 2
    tasks = [asyncio.create_task(remote.predict([Item("good")] * size)) for size in (1, 256, 1)]
    await settled()
    assert [[len(part.items) for part in response.parts] for response in handle.sent] == [[1], [256], [1]]
    async with answering(handle):
        await asyncio.gather(*tasks)


async def test_another_replica_means_more_calls(remote: RemotePredictor, handle: Handle) -> None:
    first = await busy(remote, handle)
    waiting = [await ask(remote, "good") for _ in range(4)]
    assert len(handle.sent) == CALLS_PER_REPLICA
    handle.replicas = 2
    more = [await ask(remote, "bad") for _ in range(2)]
    assert len(handle.sent) > CALLS_PER_REPLICA
    async with answering(handle):
        await asyncio.gather(*first, *waiting, *more)


async def test_more_than_may_wait_is_refused_and_told_when_to_come_back(
    remote: RemotePredictor, handle: Handle
) -> None:
    first = await busy(remote, handle)
    await asyncio.sleep(0.1)  # so that at most 360 tokens a second are measured
    handle.sent[0].reply()
    await settled()
    first.append(await ask(remote, "busy again"))
    long = "x" * 1000  # counts as the 512 tokens that are read at most
    waiting = [await ask(remote, *[long] * 3), await ask(remote, long)]
    refused = await problem(await ask(remote, "one more"))
    assert type(refused) is Overloaded
    assert int(refused.headers["Retry-After"]) >= 5
    handle.sent[1].reply()
    await settled()
    waiting.append(await ask(remote, "one more"))
    async with answering(handle):
        await asyncio.gather(*first, *waiting)


async def test_more_than_ever_may_wait_is_accepted_while_nothing_waits(remote: RemotePredictor, handle: Handle) -> None:
    tasks = [*await busy(remote, handle), await ask(remote, *["x" * 1000] * 5)]
    async with answering(handle):
        await asyncio.gather(*tasks)


async def slowly(remote: RemotePredictor, handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is measured, by a clock that stands still afterwards: 103 tokens a second."""
    now_s = 0.0
    monkeypatch.setattr(remote_module, "time", SimpleNamespace(monotonic=lambda: now_s))
    first = await ask(remote, "x" * 100)
    now_s = 1.0
    handle.sent[0].reply()
    await first


async def test_what_would_come_back_too_late_is_refused_at_the_door(
    remote: RemotePredictor, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    await slowly(remote, handle, monkeypatch)
    large = await ask(remote, "x" * 500, deadline_s=2.0)  # 4.9 s of work, but nothing is ahead of it
    refused = await problem(await ask(remote, "x" * 50, deadline_s=7.0))
    assert type(refused) is Overloaded
    assert refused.headers == {"Retry-After": "5"}
    patient = await ask(remote, "x" * 50, deadline_s=10.0)
    async with answering(handle):
        await asyncio.gather(large, patient)


async def test_what_the_replica_refuses_is_not_taken_for_work(
    remote: RemotePredictor, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    await slowly(remote, handle, monkeypatch)
    refused, large = await ask(remote, "x" * 500), await ask(remote, "x" * 500)
    handle.sent[1].outcome.set_result(RemoteResponse((Overloaded("Full.", retry_after_s=1),), NOTHING, "f" * 64))
    await problem(refused)
    assert type(await problem(await ask(remote, "x" * 50, deadline_s=7.0))) is Overloaded
    async with answering(handle):
        await large


async def test_without_a_replica_nobody_is_refused_by_how_fast_it_was(
    remote: RemotePredictor, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    await slowly(remote, handle, monkeypatch)
    large = await ask(remote, "x" * 500)
    handle.replicas = 0
    waits = await ask(remote, "x" * 50, deadline_s=7.0)
    async with answering(handle):
        await asyncio.gather(large, waits)


async def test_a_call_that_broke_off_is_no_longer_ahead_of_anybody(
    remote: RemotePredictor, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    await slowly(remote, handle, monkeypatch)
    large = await ask(remote, "x" * 500)
    handle.sent[1].outcome.set_exception(grpc.RpcError())
    await problem(large)
    async with answering(handle):
        await (await ask(remote, "x" * 500, deadline_s=2.0))


async def test_who_went_away_is_no_longer_ahead_of_anybody(
    remote: RemotePredictor, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    await slowly(remote, handle, monkeypatch)
    first = await busy(remote, handle)
    gone = await ask(remote, "x" * 500)
    gone.cancel()
    await settled()
    stays = await ask(remote, "x" * 50, deadline_s=3.0)
    async with answering(handle):
        await asyncio.gather(*first, stays)


async def test_the_time_a_caller_states_crosses_with_its_part(
    remote: RemotePredictor, handle: Handle, metrics: Metrics
) -> None:
    app = create_app({"sentiment": remote}, Settings(), metrics)
    async with (
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed") as client,
        answering(handle),
    ):
        await client.post("/v1/sentiment", json={"inputs": "good"}, headers={"X-Request-Timeout-Ms": "4000"})
        await client.post("/v1/sentiment", json={"inputs": "good"}, headers={"X-Request-Timeout-Ms": "99000"})
    stated, capped = (response.parts[0].remaining_s for response in handle.sent)
    assert 2 < stated <= 4 - 2 * 0.05  # a hop back to this gateway, and one to the caller
    assert 6 < capped <= 10 - 2 * 0.05


async def test_texts_without_letters_count_too(remote: RemotePredictor, handle: Handle) -> None:
    first = await busy(remote, handle)
    waiting = [await ask(remote, *[""] * 600)]
    waiting.append(await ask(remote, *[""] * 60))
    assert type(await problem(await ask(remote, *[""] * 60))) is Overloaded
    async with answering(handle):
        await asyncio.gather(*first, *waiting)


async def test_who_goes_away_while_it_waits_is_never_sent(
    remote: RemotePredictor, handle: Handle, metrics: Metrics
) -> None:
    first = await busy(remote, handle)
    gone, stays = await ask(remote, "gone", "gone"), await ask(remote, "stays")
    assert samples(metrics)["heed_queue_depth", "sentiment"] == 3
    gone.cancel()
    await settled()
    assert samples(metrics)["heed_queue_depth", "sentiment"] == 1
    async with answering(handle):
        assert labels(await stays) == ["stays"]
        await asyncio.gather(*first)
    assert handle.sent[-1].texts == ["stays"]


async def test_a_call_is_withdrawn_once_nobody_waits_for_any_of_it(remote: RemotePredictor, handle: Handle) -> None:
    tasks = [asyncio.create_task(remote.predict([Item(f"{number}")])) for number in range(2)]
    await settled()
    (sent,) = handle.sent
    tasks[0].cancel()
    await settled()
    assert not sent.cancelled
    tasks[1].cancel()
    await settled()
    assert sent.cancelled
    assert (await asyncio.gather(*tasks, return_exceptions=True)) != []


async def test_a_late_request_lets_go_of_its_call(remote: RemotePredictor, handle: Handle) -> None:
    blocked = [await ask(remote, "good", deadline_s=time.monotonic() + 0.05) for _ in range(CALLS_PER_REPLICA)]
    waiting = await ask(remote, "still wanted")
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
        [await ask(remote, "good", deadline_s=time.monotonic() + 0.2) for _ in range(count)]
        for count in (CALLS_PER_REPLICA, 3)
    ]
    patient = await ask(remote, "patient")
    found = [await problem(task) for task in [*sent, *waiting]]
    assert {type(one) for one in found} == {NotReady}
    assert all(int(one.headers["Retry-After"]) >= 1 for one in found)
    handle.replicas = 1
    assert remote.ready
    async with answering(handle):
        assert labels(await patient) == ["patient"]


async def test_who_asks_for_the_same_meanwhile_is_told_the_same(
    remote: RemotePredictor, handle: Handle, metrics: Metrics
) -> None:
    handle.replicas = 0
    cache = CachedPredictor(remote, 0, metrics.task("sentiment"))
    now_s = time.monotonic()
    tasks = [
        asyncio.create_task(cache.predict([Item("same")], deadline_s=now_s + seconds)) for seconds in (0.2, 0.3, 0.4)
    ]
    await settled()
    assert [response.texts for response in handle.sent] == [["same"]]
    assert {type(await problem(task)) for task in tasks} == {NotReady}


async def test_a_gateway_without_a_replica_lives_and_says_not_ready(
    remote: RemotePredictor, handle: Handle, metrics: Metrics
) -> None:
    handle.replicas = 0
    app = create_app({"sentiment": remote}, Settings(request_timeout_s=0.1), metrics)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed") as client:
        assert_problem(await client.post("/v1/sentiment", json={"inputs": "good"}), 503, "not_ready")
        assert_problem(await client.get("/readyz"), 503, "not_ready")
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/v1/models")).json()["models"][0]["version"] == "1.2.3"


async def test_a_model_that_answers_others_is_late_and_not_away(remote: RemotePredictor, handle: Handle) -> None:
    slow = await ask(remote, "slow", deadline_s=time.monotonic() + 1.0)
    other = await ask(remote, "other")
    handle.sent[1].reply()
    await other
    assert type(await problem(slow)) is DeadlineExceeded


async def test_late_after_the_last_replica_went_is_not_ready(remote: RemotePredictor, handle: Handle) -> None:
    late = await ask(remote, "late", deadline_s=time.monotonic() + 0.5)
    other = await ask(remote, "other")
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
async def test_a_call_that_breaks_off_ends_its_callers_at_once_and_nobody_else(
    remote: RemotePredictor, handle: Handle, failure: BaseException, expected: type[Problem]
) -> None:
    together = [asyncio.create_task(remote.predict([Item("good")])) for _ in range(3)]
    await settled()
    other = await ask(remote, "other")
    handle.sent[0].outcome.set_exception(failure)
    found = [await problem(task) for task in together]
    assert {type(one) for one in found} == {expected}
    assert "secret" not in found[0].detail
    assert not other.done()
    async with answering(handle):
        assert labels(await other) == ["other"]
        assert labels(await remote.predict([Item("next")])) == ["next"]


async def test_a_handle_that_refuses_to_send_leaves_nobody_waiting(remote: RemotePredictor, handle: Handle) -> None:
    handle.failure = RuntimeError("no")
    assert type(await problem(await ask(remote, "good"))) is Problem


async def test_a_reply_of_the_wrong_length_leaves_nobody_waiting(remote: RemotePredictor, handle: Handle) -> None:
    tasks = [asyncio.create_task(remote.predict([Item("good")])) for _ in range(2)]
    await settled()
    handle.sent[0].outcome.set_result(RemoteResponse((answered(handle.sent[0].parts[0]),), NOTHING, "f" * 64))
    assert type(await problem(tasks[1])) is Problem


async def test_a_problem_of_one_part_is_raised_to_its_caller_alone(remote: RemotePredictor, handle: Handle) -> None:
    tasks = [asyncio.create_task(remote.predict([Item("good")])) for _ in range(2)]
    await settled()
    partly = PredictionBatch((EmptyText("Empty."),), Timings(0, 0, 0))
    handle.sent[0].outcome.set_result(RemoteResponse((Overloaded("Full.", retry_after_s=3), partly), NOTHING, "f" * 64))
    assert (await problem(tasks[0])).headers == {"Retry-After": "3"}
    assert labels(await tasks[1]) == ["empty_text"]


async def test_answers_of_another_bundle_are_not_given_this_ones_name(remote: RemotePredictor, handle: Handle) -> None:
    task = await ask(remote, "good")
    handle.sent[0].reply(digest="0" * 64)
    assert type(await problem(task)) is NotReady


async def test_stopping_finishes_what_was_accepted_and_refuses_the_rest(
    remote: RemotePredictor, handle: Handle
) -> None:
    accepted = [*await busy(remote, handle), await ask(remote, "waits")]
    stopping = asyncio.create_task(remote.stop())
    await settled()
    assert not remote.ready
    assert not stopping.done()
    assert type(await problem(await ask(remote, "new"))) is NotReady
    async with answering(handle):
        await stopping
        assert labels((await asyncio.gather(*accepted))[-1]) == ["waits"]


async def test_a_call_belongs_to_no_request(remote: RemotePredictor, handle: Handle) -> None:
    """Serve finds in the context which request a call is made for, and ends the call with that request's client."""
    REQUEST.set("mine")
    task = await ask(remote, "good")
    assert handle.sent[0].context == "none"
    handle.sent[0].reply()
    await task


async def test_the_times_add_up_to_what_the_caller_waited(remote: RemotePredictor, handle: Handle) -> None:
    started_s = time.monotonic()
    task = await ask(remote, "good")
    await asyncio.sleep(0.1)
    handle.sent[0].reply()
    timings = (await task).timings
    total_s = time.monotonic() - started_s
    assert (timings.tokenize_s, timings.infer_s) == (0.001, 0.003)
    assert 0.1 <= sum((timings.tokenize_s, timings.queue_s, timings.infer_s)) <= total_s


async def test_what_the_replica_counted_is_counted_here(
    remote: RemotePredictor, handle: Handle, metrics: Metrics
) -> None:
    task = await ask(remote, "good", "bad")
    report = BatchReport(queued_s=(0.1, 0.2), tokens=8, padded_tokens=10, infer_s=0.5)
    handle.sent[0].reply(EngineCounts((report,), (0.01,)))
    await task
    found = samples(metrics)
    assert found["heed_tokenize_seconds_count", "sentiment"] == 1
    assert found["heed_queue_seconds_count", "sentiment"] == 2
    assert found["heed_infer_seconds_sum", "sentiment"] == 0.5
    assert found["heed_call_items_sum", "sentiment"] == 2
    assert found["heed_call_seconds_count", "sentiment"] == 1
    assert found["heed_queue_depth", "sentiment"] == 0
