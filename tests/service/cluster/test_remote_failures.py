"""Every caller gets an end: a failed, cancelled or wrong call reaches its callers and no others."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.exceptions import DeploymentUnavailableError

from service.cluster.remote import RemotePredictor
from service.cluster.remote_call import RemoteResponse
from service.errors import EmptyText, NotReady, Overloaded, Problem, ReplicaLost
from service.inference.predictor import Item, PredictionBatch, Timings
from tests.support.fake_handle import (
    NO_COUNTS,
    Handle,
    answer,
    answering,
    fill_calls,
    labels,
    problem,
    run_pending_tasks,
    send,
)

pytestmark = pytest.mark.anyio


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
