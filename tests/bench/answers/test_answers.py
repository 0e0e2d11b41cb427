from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.bench.answers import comparison, recording
from tests.bench.answers.explanation_requests import NPZ
from tests.bench.answers.names import Names, rename_answer, rename_request
from tests.bench.answers.ranking_requests import CATALOGUE, CATALOGUE_ITEMS, catalogue_items
from tests.bench.answers.recording import Answer, RecordingError
from tests.bench.answers.requests import Request, post
from tests.bench.answers.text_requests import REPLIES_IN_SET, REPLY_SET, reply_set

_TIMINGS = '"timings_ms":{"tokenize":0.1,"queue":2.5e-05,"infer":3}'


def _answer(body: str | bytes, path: str = "/v1/sentiment", **other: Any) -> Answer:
    request = {"method": "POST", "path": path, "headers": {}, "body": "{}"}
    encoded = body if isinstance(body, bytes) else body.encode()
    return replace(Answer(1, Names.BEFORE, request, 200, {}, encoded), **other)


def _compare(before: Answer, after: Answer) -> tuple[int, int]:
    """Return the counts of different and of reworded answers."""
    report = comparison.compare([before], [after])
    return report.differ.total(), report.reworded.total()


def test_requests_are_2000_and_the_same_each_time() -> None:
    first, second = recording.all_requests(), recording.all_requests()
    assert len(first) == recording.REQUESTS
    assert first == second
    assert {comparison.route_of(_answer("", request.path)).partition(" ")[2] for request in first} >= comparison.ROUTES


def test_prepared_ids_and_replies_are_unique() -> None:
    assert len({item["item_id"] for item in catalogue_items()}) == CATALOGUE_ITEMS
    assert len(set(reply_set())) == REPLIES_IN_SET


def test_only_keys_and_methods_of_a_request_are_renamed() -> None:
    body = rb'{"inputs": {"text": "newcomers\" labels", "newcomers": 2, "id":"labels"}, "newcomers" :1.50}'
    assert rename_request("/v1/recommend", body) == body.replace(b'"newcomers":', b'"min_new_items":').replace(
        b'"newcomers" :', b'"min_new_items" :'
    )
    assert rename_request("/v1/replies", body) == body
    assert rename_request("/v1/intent", b'{"labels": "labels"}') == b'{"label_set": "labels"}'
    explained = rename_request("/v1/explain/intent", b'{"method": "both_ends", "inputs": "both_ends"}')
    assert explained == b'{"method": "two_sided_occlusion", "inputs": "both_ends"}'
    assert rename_request("/v1/intent", b'{"labels": "\xff"}') == b'{"labels": "\xff"}'


def test_keys_codes_and_pointers_of_an_answer_are_renamed() -> None:
    assert rename_answer("/v1/recommend", '{"because":[],"text":"because"}') == '{"reasons":[],"text":"because"}'
    assert rename_answer("/v1/explain/sentiment", '{"named":false,"read":{}}') == '{"is_entity":false,"read_span":{}}'
    assert rename_answer("/v1/models", '{"labels":["read"]}') == '{"labels":["read"]}'
    problem = '{"type":"urn:heed:problem:too_much_to_explain","code":"too_much_to_explain","pointer":"/labels"}'
    renamed = '{"type":"urn:heed:problem:explanation_too_large","code":"explanation_too_large","pointer":"/label_set"}'
    assert rename_answer("/v1/explain/intent", problem) == renamed
    assert (
        rename_answer("/v1/recommend", '{"pointer":"/inputs/0/newcomers"}') == '{"pointer":"/inputs/0/min_new_items"}'
    )


def test_answers_that_differ_only_in_timings_and_ids_are_equal() -> None:
    before = _answer(f'{{"score":0.5,{_TIMINGS},"instance":"urn:heed:request:a1"}}')
    after = _answer(
        f'{{"score":0.5,{_TIMINGS.replace("0.1", "17.25").replace("3}", "0.0}")},"instance":"urn:heed:request:b"}}'
    )
    assert _compare(before, after) == (0, 0)


@pytest.mark.parametrize(
    "after",
    [
        '{"score":0.50,"id":"a"}',
        '{"score":0.5000000001,"id":"a"}',
        '{"id":"a","score":0.5}',
        '{"score": 0.5,"id":"a"}',
        '{"score":0.5,"id":"\\u0061"}',
        '{"score":0.5,"id":"a","more":null}',
        '{"score":0.5,"id":"a"}\n',
    ],
)
def test_every_other_byte_counts(after: str) -> None:
    assert _compare(_answer('{"score":0.5,"id":"a"}'), _answer(after)) == (1, 0)


def test_a_missing_timing_is_a_difference() -> None:
    before = "{" + _TIMINGS + "}"
    assert _compare(_answer(before), _answer(before.replace(',"infer":3', ""))) == (1, 0)


def test_status_and_headers_are_compared() -> None:
    assert _compare(_answer("{}"), _answer("{}", status=422)) == (1, 0)
    assert _compare(_answer("{}"), _answer("{}", headers={"allow": "POST"})) == (1, 0)


def test_a_new_wording_is_counted_as_reworded() -> None:
    before = '{"title":"Too much","status":413,"detail":"a \\"b\\"","code":"c","pointer":"/inputs"}'
    after = before.replace("Too much", "Too large").replace("a \\", "z \\")
    report = comparison.compare([_answer(before)], [_answer(after)])
    assert (report.differ.total(), report.reworded.total()) == (0, 1)
    assert ("Too much", "Too large") in report.wordings
    assert _compare(_answer(before), _answer(after.replace("/inputs", "/input"))) == (1, 0)


def test_renames_apply_only_between_old_and_new_names() -> None:
    before = _answer('{"because":[1]}', "/v1/recommend")
    after = replace(_answer('{"reasons":[1]}', "/v1/recommend"), names=Names.AFTER)
    assert _compare(before, after) == (0, 0)
    assert _compare(before, before) == (0, 0)
    assert _compare(before, replace(before, names=Names.AFTER)) == (1, 0)


def _npz(weight: float, queue: float) -> Answer:
    file = io.BytesIO()
    np.savez(
        file, answer=np.asarray(f'{{"timings_ms":{{"queue":{queue}}}}}'), weights_0=np.array([[weight]], np.float32)
    )
    return _answer(file.getvalue(), headers={"content-type": NPZ})


def test_npz_files_are_compared_by_the_bytes_of_their_arrays() -> None:
    assert _compare(_npz(0.5, 1.0), _npz(0.5, 2.25)) == (0, 0)
    assert _compare(_npz(0.5, 1.0), _npz(0.5000001, 1.0)) == (1, 0)


def test_recordings_of_different_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="from number 1 on"):
        comparison.compare([_answer("{}")], [_answer("{}", "/v1/intent")])
    with pytest.raises(ValueError, match="from number 1 on"):
        comparison.compare([_answer("{}")], [])


def _client(answers: list[httpx.Response], version: int = 1) -> httpx.Client:
    """Return a client of a prepared service. It returns the answers in sequence and repeats the body of the request."""

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == f"/v1/catalogues/{CATALOGUE}":
            return httpx.Response(200, json={"count": CATALOGUE_ITEMS, "version": version})
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"reply_sets": [REPLY_SET]})
        answer = answers.pop(0)
        return httpx.Response(answer.status_code, content=answer.content + request.content)

    return httpx.Client(base_url="http://heed", transport=httpx.MockTransport(handle))


def test_a_recording_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    requests = [post("/v1/recommend", {"newcomers": 1}), Request("POST", "/v1/intent", b"\xff")]
    with _client([httpx.Response(200, content=b"{}"), httpx.Response(400, content=b"\xfe")]) as client:
        recording.record(client, requests, file, Names.AFTER)
    first, second = recording.read(file)
    assert (first.number, first.names, first.status) == (1, Names.AFTER, 200)
    assert first.request["body"] == '{"newcomers": 1}'
    assert first.body == b'{}{"min_new_items": 1}'
    assert (second.status, second.body) == (400, b"\xfe\xff")
    assert json.loads(file.read_text().splitlines()[0])["request"] == requests[0].describe()


@pytest.mark.parametrize("busy", [httpx.Response(429), httpx.Response(200, content=b'{"error":{"status":504,')])
def test_requests_to_a_busy_machine_are_retried_except_edits(tmp_path: Path, busy: httpx.Response) -> None:
    file = tmp_path / "answers.jsonl"
    with _client([busy, httpx.Response(200)]) as client:
        recording.record(client, [Request("POST", "/v1/intent")], file, Names.AFTER)
    assert [answer.body for answer in recording.read(file)] == [b""]
    with _client([busy, httpx.Response(200)]) as client, pytest.raises(RecordingError, match="PUT"):
        recording.record(client, [Request("PUT", "/v1/intent")], file, Names.AFTER)


def test_a_service_with_an_edited_catalogue_is_refused(tmp_path: Path) -> None:
    with _client([], version=2) as client, pytest.raises(RecordingError, match="fresh folder"):
        recording.record(client, [], tmp_path / "answers.jsonl", Names.AFTER)
