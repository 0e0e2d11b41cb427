from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.errors import Problem
from service.http.validation import json_pointer, parse
from service.schemas.sentiment import SentimentRequest
from service.telemetry.metrics import Metrics
from tests.support.service_app import JSON, Service, assert_problem, serving


def refusal(body: bytes) -> Problem:
    with pytest.raises(Problem) as refused:
        parse(SentimentRequest, body)
    return refused.value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b'{"inputs": "a"',
        b'{"inputs": "a"} x',
        b"{'inputs': 'a'}",
        b'{"inputs": NaN}',
        b'{"inputs": ["a", NaN]}',
        b'{"inputs": "a", "unknown": -Infinity}',
        b'{"inputs": "\\ud800", "unknown": NaN}',
        b'{"inputs": ' + b"9" * 10_000 + b"}",
        b'{"inputs": "a\nb"}',
        b'{"inputs": "\\ud8"}',
        b"[" * 10_000,
        b'{"inputs": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"inputs": ["\\ud800", ' + b"[" * 10_000 + b"]" * 10_000 + b"]}",
    ],
    ids=lambda body: body[:40].decode("utf-8", "backslashreplace"),
)
def test_invalid_json_is_malformed(body: bytes) -> None:
    assert (refusal(body).status, refusal(body).code) == (400, "malformed_json")


@pytest.mark.parametrize(
    "body", [b'{"inputs": "\xff"}', b'{"inputs": "\xed\xa0\x80"}', '{"inputs": "a"}'.encode("utf-16")]
)
def test_a_body_that_is_not_utf8_is_malformed(body: bytes) -> None:
    assert (refusal(body).status, refusal(body).code) == (400, "malformed_body")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b"[]", ""),
        (b"{}", "/inputs"),
        (b'{"inputs": 3}', "/inputs"),
        (b'{"inputs": []}', "/inputs"),
        (b'{"inputs": 1e999}', "/inputs"),
        (b'{"inputs": {"text": 3}}', "/inputs/text"),
        (b'{"inputs": [{"text": 3}]}', "/inputs/0/text"),
        (b'{"inputs": [3]}', "/inputs/0"),
        (b'{"inputs": [{"text": "a", "entity": 1}]}', "/inputs/0/entity"),
        (b'{"inputs": "a", "a/b~c": 1}', "/a~1b~0c"),
        (b'{"inputs": {"text": "a", "(object)": 1}}', "/inputs/(object)"),
        (b'{"inputs": "a", "(text)": 1}', "/(text)"),
        (b'{"inputs": "\\ud800"}', "/inputs"),
        (b'{"inputs": ["\\uDC00 b"]}', "/inputs/0"),
        (b'{"inputs": [{"text": "x\\ud83d"}]}', "/inputs/0/text"),
    ],
)
def test_a_wrong_value_has_a_pointer_into_the_callers_document(body: bytes, pointer: str) -> None:
    assert (refusal(body).status, refusal(body).code, refusal(body).pointer) == (422, "invalid_request", pointer)


def test_pointers_are_short_and_valid_utf8_for_any_key() -> None:
    assert len(json_pointer(("x" * 10_000,))) <= 200
    assert json_pointer(("\ud800",)).encode() == b"/?"


@pytest.mark.parametrize("escape", ["", ', "z": "\\ud800"'], ids=["plain", "with a surrogate"])
def test_a_hundred_thousand_faults_are_counted_and_not_listed(escape: str) -> None:
    body = '{"inputs": "a"' + "".join(f', "k{index}": 1' for index in range(100_000)) + escape + "}"
    assert refusal(body.encode()).detail.startswith("10000")


def test_a_surrogate_pair_is_a_character() -> None:
    assert parse(SentimentRequest, b'{"inputs": "\\ud83d\\ude00"}').inputs == "\U0001f600"


# Sizes and times, through the whole service.


class Upload:
    """A body of `size` bytes in chunks, which counts the bytes that were read."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.read_bytes = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.read_bytes < self.size:
            self.read_bytes += 65_536
            yield b" " * 65_536


@pytest.mark.anyio
@pytest.mark.parametrize("declared", [True, False], ids=["content-length", "chunked"])
async def test_a_body_over_the_limit_is_refused_and_drained_only_in_part(service: Service, declared: bool) -> None:
    for size, is_drained in ((10 * 2**20, True), (100 * 2**20, False)):
        upload = Upload(size)
        headers = JSON | ({"content-length": str(size)} if declared else {})
        assert_problem(await service.send(upload, headers), 413, "body_too_large")
        assert (upload.read_bytes >= size) is is_drained
        assert upload.read_bytes < 20 * 2**20


@pytest.mark.anyio
async def test_a_client_that_expects_100_continue_need_not_send_a_large_body(service: Service) -> None:
    upload = Upload(10 * 2**20)
    headers = JSON | {"content-length": str(upload.size), "expect": "100-continue"}
    assert_problem(await service.send(upload, headers), 413, "body_too_large")
    assert upload.read_bytes == 0


@pytest.mark.anyio
async def test_a_body_at_the_limit_is_accepted(service: Service) -> None:
    body = b'{"inputs": "good"}'
    assert (await service.send(body + b" " * (2 * 2**20 - len(body)))).status_code == 200
    assert_problem(await service.send(body + b" " * (2 * 2**20 - len(body) + 1)), 413, "body_too_large")


@pytest.mark.anyio
async def test_a_body_without_an_end_times_out(tmp_path: Path, metrics: Metrics) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with serving(tmp_path, metrics, request_timeout_s=0.05) as service:
        response = await service.send(endless())
        assert_problem(response, 408, "body_timeout")
        assert response.headers["connection"] == "close", "a slow client keeps no connection"


@pytest.mark.anyio
@pytest.mark.parametrize("declared", [True, False], ids=["content-length", "chunked"])
@pytest.mark.parametrize("limit", ["max_bodies_bytes", "max_client_bodies_bytes"])
async def test_bodies_on_their_way_are_bounded(tmp_path: Path, metrics: Metrics, declared: bool, limit: str) -> None:
    body = b'{"inputs": "good"}'
    size, arrived, goes_on = 2**20, asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        begun = 1 if declared else size - len(body)  # a declared size counts before it is there
        yield body + b" " * (begun - 1)
        arrived.set()
        await goes_on.wait()
        yield b" " * (size - len(body) - begun + 1)

    headers = JSON | ({"content-length": str(size)} if declared else {})
    async with serving(tmp_path, metrics, **{limit: 2**20 + 1000}) as service:
        first = asyncio.ensure_future(service.send(slow(), headers))
        await arrived.wait()
        refused = await service.send(Upload(size), headers)
        assert_problem(refused, 429, "overloaded")
        assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")
        assert (await service.send(body)).status_code == 200, "a small one still fits"
        goes_on.set()
        assert (await first).status_code == 200
        assert (await service.send(body + b" " * (size - len(body)))).status_code == 200, "the bytes are given back"
