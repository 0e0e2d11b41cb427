from __future__ import annotations

import asyncio
import re

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from service.fairness.client import CLIENT
from tests.service.telemetry.test_metrics import samples
from tests.support.service_app import Service, assert_problem

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("sent", "is_valid"),
    [("abc-1.2_X", True), ("a" * 128, True), ("a" * 129, False), ("a b", False), ("a\x1b[31m", False)],
)
async def test_a_valid_request_id_comes_back_and_an_invalid_one_is_replaced(
    service: Service, sent: str, is_valid: bool
) -> None:
    for path in ("/healthz", "/nowhere"):
        result = (await service.client.get(path, headers={"x-request-id": sent})).headers["x-request-id"]
        assert (result == sent) is is_valid
        assert re.fullmatch(r"[\w.-]{1,128}", result)


@pytest.mark.parametrize(
    ("address", "client"),
    [(("192.0.2.7", 5), "192.0.2.7"), (("2001:db8::7", 5), "2001:db8::/64"), (None, "")],
    ids=["ipv4", "ipv6", "unknown"],
)
async def test_a_request_is_of_the_client_at_its_address(
    service: Service, address: tuple[str, int] | None, client: str
) -> None:
    seen: list[str] = []

    @service.app.get("/who")
    async def who() -> None:
        seen.append(CLIENT.get())

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await service.app({**scope, "client": address}, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed") as caller:
        await caller.get("/who")
    assert seen == [client]
    assert CLIENT.get() == ""


async def test_an_unexpected_exception_is_an_opaque_500(service: Service) -> None:
    @service.app.get("/fault")
    async def fault() -> None:
        raise RuntimeError("/home/secret")

    response = await service.client.get("/fault")
    assert_problem(response, 500, "internal_error")
    assert "secret" not in response.text


async def test_every_request_is_counted_once_before_its_answer_ends(service: Service) -> None:
    await asyncio.gather(*(service.ask([f"good {turn}", f"bad {turn}", ""]) for turn in range(20)))
    await service.ask([])
    await service.client.get("/v1/sentiment")
    for name in range(5):
        await service.client.get(f"/random/{name}")
    response = await service.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    counts = samples(service.metrics)
    assert {key[1:]: value for key, value in counts.items() if key[0] == "heed_requests_total"} == {
        ("/v1/sentiment", "200"): 20,
        ("/v1/sentiment", "422"): 1,
        ("/v1/sentiment", "405"): 1,
        ("other", "404"): 5,
        ("/metrics", "200"): 1,
    }
    assert counts["heed_request_seconds_count", "/v1/sentiment"] == 22
    computed, shared = counts["heed_batch_items_sum", "sentiment"], counts["heed_items_shared_total", "sentiment"]
    assert counts["heed_items_total", "ok", "sentiment"] == computed + shared == 40
    assert counts["heed_items_total", "empty_text", "sentiment"] == 20


async def test_a_client_that_disconnects_is_counted_and_leaves_the_queue(service: Service) -> None:
    first = await service.held()
    gone = asyncio.ensure_future(service.ask("bad"))
    while not samples(service.metrics)["heed_queue_depth", "sentiment"]:
        await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    counts = samples(service.metrics)
    assert counts["heed_queue_depth", "sentiment"] == 0
    assert counts["heed_requests_total", "/v1/sentiment", "499"] == 1
    service.runtime.gate.set()
    assert (await first).status_code == 200


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/v1/models"])
async def test_head_answers_as_get_without_the_body(service: Service, path: str) -> None:
    got = await service.client.get(path)
    head = await service.client.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"") == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert path == "/metrics" or head.headers["content-length"] == str(len(got.content))


async def test_head_sends_no_body_to_the_server(service: Service) -> None:
    """Call the application itself, because clients drop the body of an answer to HEAD."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "HEAD", "path": "/healthz", "headers": [], "query_string": b""}
    await service.app(scope, receive, send)
    assert sent[0]["status"] == 200
    assert b"".join(message.get("body", b"") for message in sent[1:]) == b""


async def test_head_of_a_problem_has_its_status_and_no_body(service: Service) -> None:
    for path, status in (("/nowhere", 404), ("/v1/sentiment", 405)):
        head = await service.client.head(path)
        assert (head.status_code, head.content) == (status, b"")


@pytest.mark.parametrize("path", ["/healthz/", "/readyz/", "/metrics/", "/docs/", "/v1/models/"])
async def test_a_slash_at_the_end_changes_nothing(service: Service, path: str) -> None:
    assert (await service.client.get(path)).status_code == 200
    assert (await service.client.post("/v1/sentiment/", json={"inputs": "good"})).status_code == 200
    counted = [key for key in samples(service.metrics) if key[0] == "heed_requests_total"]
    assert {key[1] for key in counted} == {path.rstrip("/"), "/v1/sentiment"}
    assert_problem(await service.client.get("/nowhere/"), 404, "not_found")


@pytest.mark.parametrize("method", ["BREW", "PURGE", "OPTIONS", "DELETE"])
async def test_an_unknown_method_is_a_problem_with_the_allowed_ones(service: Service, method: str) -> None:
    for path, allowed in (("/v1/sentiment", "POST"), ("/v1/models", "GET, HEAD"), ("/", "GET, HEAD")):
        response = await service.client.request(method, path)
        assert_problem(response, 405, "method_not_allowed")
        assert response.headers["allow"] == allowed
