"""The replica's side of the hop, with a real engine. Calls and responses are pickled, as Ray does."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.bundle import Bundle
from models.text.tokenizer import Tokenizer
from service.cluster.remote_call import CountBuffer, RemoteRequest, RemoteResponse, answer_requests
from service.errors import Overloaded, Problem
from service.fairness.client import CLIENT
from service.inference.engine import Engine
from service.inference.predictor import Item, PredictionBatch
from tests.support import fake_model as fakes

pytestmark = pytest.mark.anyio


class Replica:
    def __init__(self, folder: Path) -> None:
        self.runtime = fakes.FakeRuntime()
        self.bundle: Bundle = fakes.make_bundle(folder)
        self.counts = CountBuffer()
        tokenizer = Tokenizer(fakes.write_tokenizer_file(folder), self.bundle.max_tokens)
        self.engine = Engine(self.bundle, tokenizer, self.runtime, fakes.LIMITS, self.counts)

    async def call(self, *requests: RemoteRequest) -> RemoteResponse:
        crossed: Sequence[RemoteRequest] = pickle.loads(pickle.dumps(requests))
        reply: RemoteResponse = pickle.loads(pickle.dumps(await answer_requests(self.engine, self.counts, crossed)))
        return reply


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[Replica]:
    started = Replica(tmp_path)
    await started.engine.start()
    yield started
    started.runtime.gate.set()
    await started.engine.stop()


def request(*texts: str, truncate: bool = True, remaining_s: float = float("inf")) -> RemoteRequest:
    return RemoteRequest(tuple(Item(text) for text in texts), truncate, remaining_s)


def summary(answer: PredictionBatch | Problem) -> list[str] | str:
    if isinstance(answer, Problem):
        return answer.code
    return [fakes.label_or_code(outcome) for outcome in answer.outcomes]


async def test_a_request_is_of_the_client_that_the_gateway_names(replica: Replica) -> None:
    seen: list[str] = []
    predict = replica.engine.predict

    async def recorded(*arguments: Any) -> PredictionBatch:
        seen.append(CLIENT.get())
        return await predict(*arguments)

    replica.engine.predict = recorded  # type: ignore[assignment, method-assign]
    await replica.call(replace(request("good"), client="a"), replace(request("bad"), client="b"), request("fine"))
    assert seen == ["a", "b", ""]
    assert CLIENT.get() == ""


async def test_each_request_gets_its_answer_in_order(replica: Replica) -> None:
    long = "good " * 600
    reply = await replica.call(request("good", ""), request("bad", long), request(long, truncate=False))
    assert [summary(answer) for answer in reply.answers] == [
        ["positive", "empty_text"],
        ["negative", "positive"],
        ["text_too_long"],
    ]
    assert reply.digest == replica.bundle.digest


async def test_the_batcher_merges_the_requests(replica: Replica) -> None:
    replica.runtime.gate.clear()
    replica.runtime.entered.clear()
    calls = [asyncio.create_task(replica.call(request("good")))]
    assert await asyncio.to_thread(replica.runtime.entered.wait, 60)
    calls.append(asyncio.create_task(replica.call(*[request("good")] * 5)))
    calls.append(asyncio.create_task(replica.call(*[request("bad")] * 5)))
    for _ in range(20):  # encoding a few texts does not block, so after these turns all of them wait
        await asyncio.sleep(0)
    replica.runtime.gate.set()
    await asyncio.gather(*calls)
    assert [len(batch.ids) for batch in replica.runtime.batches[-2:]] == [1, 10]


async def test_an_expired_request_is_the_only_late_one(replica: Replica) -> None:
    replica.runtime.gate.clear()
    replica.runtime.entered.clear()
    call = asyncio.create_task(replica.call(request("good"), request("bad", remaining_s=0.05)))
    assert await asyncio.to_thread(replica.runtime.entered.wait, 60)
    await asyncio.sleep(0.2)
    replica.runtime.gate.set()
    assert [summary(answer) for answer in (await call).answers] == [["positive"], ["deadline_exceeded"]]


class Faulty:
    """Refuses or fails, depending on the first text."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.ready = self.healthy = True

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def predict(
        self, items: Sequence[Item], truncate: bool = True, deadline_s: float = float("inf")
    ) -> PredictionBatch:
        if items[0].text == "full":
            raise Overloaded("Full.", retry_after_s=9)
        raise ValueError("secret")


async def test_a_fault_in_one_request_affects_no_other(tmp_path: Path) -> None:
    reply = await answer_requests(
        Faulty(fakes.make_bundle(tmp_path)), CountBuffer(), [request("full"), request("broken")]
    )
    full, broken = reply.answers
    assert isinstance(full, Overloaded)
    assert full.headers == {"Retry-After": "9"}
    assert isinstance(broken, Problem)
    assert (broken.code, "secret" in broken.detail) == ("internal_error", False)


async def test_a_response_carries_the_counts_since_the_last_one(replica: Replica) -> None:
    first = (await replica.call(request("good", "bad", ""))).counts
    assert sum(len(batch.queued_s) for batch in first.batches) == 2  # without those of the warm-up
    assert len(first.tokenized_s) == 1
    second = (await replica.call(request("good"))).counts
    assert len(second.batches) == 1
