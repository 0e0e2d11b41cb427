"""Answers of the running service, through HAProxy and Ray, to good and bad input."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support.local_service import JSON, Client, Reply, Service, load

GOOD = ["Shares of Acme plunge after profit warning", "公司利润大增，股票上涨", "A beats B"]
MAX_SECONDS = 2.0
PAGES = ["/", "/console/console.js", "/v1/models", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"]


def test_a_typical_request_gets_a_complete_answer(service: Service) -> None:
    inputs = [GOOD[0], {"text": "A beats B", "entity": "A", "id": "n-17"}]
    reply = service.client.post({"inputs": inputs, "truncate": True})
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    answer = reply.json
    assert list(answer) == ["model", "version", "results", "timings_ms"]
    assert (answer["model"], answer["version"]) == ("sentiment", "0.0.1")
    assert [result["id"] for result in answer["results"]] == [None, "n-17"]
    for result in answer["results"]:
        scores = result["scores"]
        assert list(scores) == ["negative", "neutral", "positive"]
        assert math.isclose(sum(scores.values()), 1, abs_tol=1e-6)
        assert result["label"] == max(scores, key=scores.__getitem__)
        assert math.isclose(result["polarity"], scores["positive"] - scores["negative"], abs_tol=1e-6)
        assert result["tokens"] > 2
        assert result["truncated"] is False
    assert list(answer["timings_ms"]) == ["tokenize", "queue", "infer"]


@pytest.mark.parametrize("path", PAGES)
def test_every_page_comes_from_the_application(service: Service, path: str) -> None:
    reply = service.client.get(path)
    assert reply.status == 200
    assert "," not in reply.headers["x-request-id"]  # only the application knows this header


def test_answers_are_explained(service: Service) -> None:
    for text in GOOD:
        (answer,) = service.client.post({"inputs": text}).json["results"]
        reply = service.client.post({"inputs": text}, "/v1/explain/sentiment")
        assert reply.status == 200, reply.body
        (explained,) = reply.json["results"]
        assert (explained["label"], explained["tokens"]) == (answer["label"], answer["tokens"])
        assert "".join(word["text"] for word in explained["words"]) == text.replace(" ", "")


PROBLEMS = {
    "malformed": (b'{"inputs": ', 400, "malformed_json"),
    "no JSON": (b"inputs=a", 400, "malformed_json"),
    "empty body": (b"", 400, "malformed_json"),
    "truncated": (b'{"inputs": ["a", "b', 400, "malformed_json"),
    "nested 10,000 deep": (b'{"inputs": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", 400, "malformed_json"),
    "NaN": (b'{"inputs": [NaN]}', 400, "malformed_json"),
    "not UTF-8": (b'{"inputs": "\xff\xfe"}', 400, "malformed_body"),
    "number for text": (b'{"inputs": 5}', 422, "invalid_request"),
    "text for flag": (b'{"inputs": "a", "truncate": "yes"}', 422, "invalid_request"),
    "null": (b'{"inputs": null}', 422, "invalid_request"),
    "nothing": (b"{}", 422, "invalid_request"),
    "unknown field": (b'{"inputs": "a", "model": "b"}', 422, "invalid_request"),
    "unknown field of an item": (b'{"inputs": {"text": "a", "language": "en"}}', 422, "invalid_request"),
    "empty list": (b'{"inputs": []}', 422, "invalid_request"),
    "257 inputs": (json.dumps({"inputs": ["a"] * 257}).encode(), 422, "invalid_request"),
    "lone surrogate": (b'{"inputs": "a \\ud800 b"}', 422, "invalid_request"),
    "empty text": (b'{"inputs": ""}', 422, "empty_text"),
    "white space": (b'{"inputs": [" \\t\\n\\u3000 "]}', 422, "empty_text"),
    "only NUL": (b'{"inputs": ["\\u0000"]}', 422, "empty_text"),
    "empty entity": (b'{"inputs": {"text": "a", "entity": " "}}', 422, "invalid_request"),
    "too long without truncation": (
        json.dumps({"inputs": "up and down " * 600, "truncate": False}).encode(),
        422,
        "text_too_long",
    ),
    "10 MB": (json.dumps({"inputs": "a" * 10_000_000}).encode(), 413, "body_too_large"),
}

ANSWERED = {
    "NUL inside": "profit\u0000 warning",
    "1 MB word": "a" * 1_000_000,
    "100,000 combining marks": "e" + "\u0301" * 100_000,
    "joined emoji": "👩‍👩‍👧‍👦🏳️‍🌈 up",
    "right to left": "ارتفعت الأسهم عالية ‏שלום‏",
    "Chinese and English": "Acme公司profit大涨30%，shares上涨！",
    "full width": "Ａｃｍｅ　ｂｅａｔｓ　Ｂ",
    "private use": "\ue000\uf8ff a",
}


@pytest.fixture(scope="module")
def neighbours(service: Service) -> Iterator[Client]:
    """Good requests that run during all tests of this module, and are checked at the end."""
    expected = [service.client.post({"inputs": text}).json["results"] for text in GOOD]
    with load(service.port, 2, lambda index: {"inputs": GOOD[index % len(GOOD)]}) as outcomes:
        yield service.client
    assert len(outcomes) > 50
    for reply in outcomes:
        assert isinstance(reply, Reply)
        assert reply.status == 200
        assert reply.json["results"] in expected


def expect_problem(reply: Reply, status: int, code: str) -> None:
    assert (reply.status, reply.json["code"]) == (status, code)
    assert reply.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail", "instance", "code"} <= set(reply.json)
    assert reply.json["status"] == status
    assert reply.seconds < MAX_SECONDS


@pytest.mark.parametrize(("body", "status", "code"), PROBLEMS.values(), ids=PROBLEMS)
def test_a_bad_request_gets_a_problem(neighbours: Client, body: bytes, status: int, code: str) -> None:
    reply = neighbours.send("POST", "/v1/sentiment", body, JSON)
    expect_problem(reply, status, code)
    if status == 422:
        assert reply.json["pointer"].startswith("/") or reply.json["pointer"] == ""


@pytest.mark.parametrize("text", ANSWERED.values(), ids=ANSWERED)
def test_odd_text_is_answered(neighbours: Client, text: str) -> None:
    reply = neighbours.post({"inputs": text})
    assert reply.status == 200
    assert reply.seconds < MAX_SECONDS
    assert len(reply.json["results"]) == 1


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_other_content_types_are_refused(neighbours: Client, content_type: str) -> None:
    expect_problem(
        neighbours.send("POST", "/v1/sentiment", b'{"inputs": "a"}', {"Content-Type": content_type}),
        415,
        "unsupported_media_type",
    )


@pytest.mark.parametrize(
    "path", ["/console", "/v1/nothing", "/v1/sentiment/x", "/-/routes/x", "/%2e%2e/etc/passwd", "/v1//sentiment"]
)
def test_an_unknown_route_gets_404(neighbours: Client, path: str) -> None:
    expect_problem(neighbours.get(path), 404, "not_found")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_a_method_that_a_route_lacks_gets_405(neighbours: Client, method: str) -> None:
    reply = neighbours.send(method, "/v1/sentiment")
    expect_problem(reply, 405, "method_not_allowed")
    assert reply.headers["allow"] == "POST"


def test_one_bad_item_does_not_affect_the_others(neighbours: Client) -> None:
    reply = neighbours.post({"inputs": [GOOD[0], {"text": " ", "id": "bad"}, GOOD[1]]})
    assert reply.status == 200
    first, bad, last = reply.json["results"]
    assert [first, last] == [neighbours.post({"inputs": text}).json["results"][0] for text in GOOD[:2]]
    assert (bad["id"], bad["error"]["status"], bad["error"]["code"]) == ("bad", 422, "empty_text")


def send_raw(port: int, request: bytes) -> bytes:
    """Send the request, and return everything that the server sends before it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(request)
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
    return received


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Flood: " + b"x" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /v1/sentiment HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        b"nonsense\r\n\r\n",
    ],
    ids=["header flood", "long URL", "two lengths", "no HTTP"],
)
def test_input_that_is_not_http_is_refused_immediately(
    neighbours: Client, service: Service, request_head: bytes
) -> None:
    """HAProxy refuses it with a fixed page."""
    started_s = time.monotonic()
    assert send_raw(service.port, request_head).startswith(b"HTTP/1.1 400 ")
    assert time.monotonic() - started_s < MAX_SECONDS
