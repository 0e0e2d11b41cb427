"""Remote placement on two nodes: the same answers as inline, and an end for every request if the model's node dies."""

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
from tests.support.local_service import Reply, Service, exposed, free_port, listening, load, metric_sum, post_all
from tests.support.two_nodes import REPLY_TIMEOUT_S, TIMEOUT_S, Nodes

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


def fresh(index: int) -> object:
    """Return a unique request, so that no answer is shared and each request reaches the model."""
    return {"inputs": f"{index} {TEXTS[index % len(TEXTS)]}"}


def long(index: int) -> object:
    """Return a request that keeps the tiny model busy.

    Over 12 connections these are 30,000 tokens, fewer than the half of the queue that one client may fill.
    """
    return {"inputs": [f"{index} {line} " + "up and down " * 200 for line in range(5)]}


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + REPLY_TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


async def predict_inline(path: Path, items: list[Item]) -> PredictionBatch:
    engine = open_engine(load_bundle(path), Settings(batch_tokens=2048, batch_items=16), CountBuffer())
    await engine.start()
    try:
        return await engine.predict(items)
    finally:
        await engine.stop()


def test_answers_equal_those_of_the_inline_model(nodes: Nodes, bundle: Path) -> None:
    items = [Item(text) for text in TEXTS] + [Item(f"Acme {text}", "Acme") for text in TEXTS]
    expected = asyncio.run(predict_inline(bundle, items)).outcomes
    inputs = [{"text": item.text} | ({"entity": item.entity} if item.entity else {}) for item in items]
    alone = [reply.json["results"][0] for reply in post_all(nodes.port, [{"inputs": item} for item in inputs], 8)]
    together = nodes.client.post({"inputs": inputs}).json["results"]
    for results in (alone, together):
        for result, prediction in zip(results, expected, strict=True):
            assert isinstance(prediction, Classification)
            assert (result["tokens"], result["truncated"]) == (prediction.tokens, prediction.truncated)
            assert result["scores"] == pytest.approx(prediction.scores, abs=1e-6)


def test_gateways_hold_no_model_but_report_its_metrics(nodes: Nodes) -> None:
    assert not nodes.gateways_hold_a_runtime()
    before = {name: metric_sum(nodes.client, name) for name in ("heed_items_total", "heed_infer_seconds_count")}
    assert nodes.client.post({"inputs": TEXTS}).status == 200
    assert metric_sum(nodes.client, "heed_items_total", outcome="ok") == before["heed_items_total"] + len(TEXTS)
    assert metric_sum(nodes.client, "heed_infer_seconds_count") > before["heed_infer_seconds_count"]


def test_gateways_without_a_model_do_not_explain(nodes: Nodes) -> None:
    reply = nodes.client.post({"inputs": "a"}, "/v1/explain/sentiment")
    assert (reply.status, reply.json["code"]) == (404, "not_found")


def test_waiting_requests_share_calls(nodes: Nodes) -> None:
    before = [metric_sum(nodes.client, f"heed_call_items_{suffix}") for suffix in ("sum", "count")]
    post_all(nodes.port, [long(index) for index in range(48)], 12)
    texts, calls = [
        metric_sum(nodes.client, f"heed_call_items_{suffix}") - start
        for suffix, start in zip(("sum", "count"), before, strict=True)
    ]
    assert texts == 48 * 5
    assert calls < 40


def test_a_killed_node_fails_requests_in_time_and_is_replaced(nodes: Nodes) -> None:
    with load(nodes.port, 16, fresh) as outcomes:
        wait_until(lambda: len(outcomes) > 50)
        nodes.kill()
        killed = len(outcomes)
        wait_until(lambda: statuses(outcomes[killed:]).count(503) >= 16)
        wait_until(lambda: nodes.client.get("/readyz").status == 503)
        assert nodes.client.get("/healthz").status == 200
        nodes.join()
        wait_until(lambda: statuses(outcomes)[-50:] == [200] * 50)
        assert nodes.client.get("/readyz").status == 200
    assert set(statuses(outcomes)) <= {200, 502, 503}
    assert statuses(outcomes).count(502) <= 16  # each connection carried one request when the node died
    for reply in outcomes:
        assert isinstance(reply, Reply)
        assert reply.seconds < TIMEOUT_S + 2
        if reply.status == 503:
            assert (reply.json["code"], int(reply.headers["retry-after"]) >= 1) == ("not_ready", True)
        elif reply.status == 502:
            assert reply.json["code"] == "replica_lost"


def test_replicas_scale_with_the_load_without_failed_requests(nodes: Nodes) -> None:
    wait_until(lambda: nodes.replicas() == 1)
    with load(nodes.port, 12, long) as heavy:
        wait_until(lambda: nodes.replicas() == 3)
    with load(nodes.port, 1, fresh) as light:
        wait_until(lambda: nodes.replicas() == 1)
    assert len(light) > 50
    assert set(statuses(heavy + light)) == {200}


def test_on_one_machine_the_model_listens_only_on_loopback(bundle: Path) -> None:
    """Its replicas unpickle their input."""
    started = Service(bundle, free_port(), 1, {"HEED_PLACEMENT": "remote", "HEED_MODEL_REPLICAS_MAX": "1"})
    try:
        assert started.client.post({"inputs": TEXTS}).status == 200
        ports = listening(started)
        assert any("ServeReplica:heed:sentiment-model" in process for process in ports.values())
        assert exposed(ports) == {}
    finally:
        started.stop()


def statuses(outcomes: list[Reply | Exception]) -> list[int]:
    """Return the statuses, with 0 for an error without an answer."""
    return [outcome.status if isinstance(outcome, Reply) else 0 for outcome in outcomes]
