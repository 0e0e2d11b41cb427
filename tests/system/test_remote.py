"""Remote placement on two nodes: the same answers, and every request ends whatever becomes of the model's node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from models.bundle import load_bundle as load_bundle
from service.cluster.remote_call import CountBuffer
from service.inference.assembly import open_engine
from service.inference.predictor import Classification, Item, PredictionBatch
from service.settings import Settings
from tests.support.local_service import Reply, Service, at_once, counted, exposed, free_port, listening, load
from tests.support.two_nodes import PATIENCE_S, TIMEOUT_S, Nodes

TEXTS = [
    *(f"Shares of Acme plunge after profit warning {number}" for number in range(24)),
    *(f"公司利润大增，股票上涨{number}" for number in range(12)),
    "up and down " * 300,
    "A beats B",
]


@pytest.fixture(scope="module")
def nodes(bundle: Path) -> Iterator[Nodes]:
    started = Nodes(bundle)
    try:
        started.wait_ready()
        yield started
    finally:
        started.stop()


def fresh(number: int) -> object:
    """Asked by nobody else, so that no answer is shared: each request reaches the model."""
    return {"inputs": f"{number} {TEXTS[number % len(TEXTS)]}"}


def long(number: int) -> object:
    """Keeps even the tiny model busy; from 12 connections, 48,000 tokens, which is below what may wait."""
    return {"inputs": [f"{number} {line} " + "up and down " * 200 for line in range(8)]}


def until(true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


async def inline(path: Path, items: list[Item]) -> PredictionBatch:
    engine = open_engine(load_bundle(path), Settings(batch_tokens=2048, batch_items=16), CountBuffer())
    await engine.start()
    try:
        return await engine.predict(items)
    finally:
        await engine.stop()


def test_answers_are_those_of_the_inline_model(nodes: Nodes, bundle: Path) -> None:
    items = [Item(text) for text in TEXTS] + [Item(text, "Acme") for text in TEXTS]
    expected = asyncio.run(inline(bundle, items)).outcomes
    inputs = [{"text": item.text} | ({"entity": item.entity} if item.entity else {}) for item in items]
    alone = [reply.json["results"][0] for reply in at_once(nodes.port, [{"inputs": one} for one in inputs], 8)]
    together = nodes.client.post({"inputs": inputs}).json["results"]
    for results in (alone, together):
        for result, answered in zip(results, expected, strict=True):
            assert isinstance(answered, Classification)
            assert (result["tokens"], result["truncated"]) == (answered.tokens, answered.truncated)
            assert result["scores"] == pytest.approx(answered.scores, abs=1e-6)


def test_gateways_hold_no_model_and_count_for_it(nodes: Nodes) -> None:
    assert not nodes.gateways_hold_a_runtime()
    before = {name: counted(nodes.client, name) for name in ("heed_items_total", "heed_infer_seconds_count")}
    assert nodes.client.post({"inputs": TEXTS}).status == 200
    assert counted(nodes.client, "heed_items_total", outcome="ok") == before["heed_items_total"] + len(TEXTS)
    assert counted(nodes.client, "heed_infer_seconds_count") > before["heed_infer_seconds_count"]


def test_gateways_without_a_model_explain_nothing(nodes: Nodes) -> None:
    reply = nodes.client.post({"inputs": "a"}, "/v1/explain/sentiment")
    assert (reply.status, reply.json["code"]) == (404, "not_found")


def test_requests_that_wait_share_calls(nodes: Nodes) -> None:
    before = [counted(nodes.client, f"heed_call_items_{part}") for part in ("sum", "count")]
    at_once(nodes.port, [long(number) for number in range(48)], 12)
    texts, calls = [
        counted(nodes.client, f"heed_call_items_{part}") - start
        for part, start in zip(("sum", "count"), before, strict=True)
    ]
    assert texts == 48 * 8
    assert calls < 40


def test_a_killed_node_hangs_nobody_and_another_takes_its_place(nodes: Nodes) -> None:
    with load(nodes.port, 16, fresh) as found:
        until(lambda: len(found) > 50)
        nodes.kill()
        killed = len(found)
        until(lambda: statuses(found[killed:]).count(503) >= 16)
        until(lambda: nodes.client.get("/readyz").status == 503)
        assert nodes.client.get("/healthz").status == 200
        nodes.join()
        until(lambda: statuses(found)[-50:] == [200] * 50)
        assert nodes.client.get("/readyz").status == 200
    assert set(statuses(found)) <= {200, 502, 503}
    assert statuses(found).count(502) <= 16  # each connection had one request on it when the node went
    for reply in found:
        assert isinstance(reply, Reply)
        assert reply.seconds < TIMEOUT_S + 2
        if reply.status == 503:
            assert (reply.json["code"], int(reply.headers["retry-after"]) >= 1) == ("not_ready", True)
        elif reply.status == 502:
            assert reply.json["code"] == "replica_lost"


def test_replicas_come_with_load_and_go_with_it_and_no_request_fails(nodes: Nodes) -> None:
    until(lambda: nodes.replicas() == 1)
    with load(nodes.port, 12, long) as heavy:
        until(lambda: nodes.replicas() == 3)
    with load(nodes.port, 1, fresh) as light:
        until(lambda: nodes.replicas() == 1)
    assert len(light) > 50
    assert set(statuses(heavy + light)) == {200}


def test_on_one_machine_the_model_listens_on_loopback_alone(bundle: Path) -> None:
    """Its replicas unpickle what reaches them."""
    started = Service(bundle, free_port(), 1, {"HEED_PLACEMENT": "remote", "HEED_MODEL_REPLICAS_MAX": "1"})
    try:
        assert started.client.post({"inputs": TEXTS}).status == 200
        ports = listening(started)
        assert any("ServeReplica:heed:sentiment-model" in process for process in ports.values())
        assert exposed(ports) == {}
    finally:
        started.stop()


def statuses(found: list[Reply | Exception]) -> list[int]:
    """0 for what was no answer."""
    return [reply.status if isinstance(reply, Reply) else 0 for reply in found]
