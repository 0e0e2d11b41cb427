"""A recording: the answers of a service to all requests in sequence, in JSON lines."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.bench.answers import explanation_requests, faulty_requests, ranking_requests, text_requests
from tests.bench.answers.names import Names, rename_request
from tests.bench.answers.ranking_requests import CATALOGUE, CATALOGUE_ITEMS
from tests.bench.answers.requests import Request, rng_of
from tests.bench.answers.text_requests import REPLY_SET

REQUESTS = 2_000
HEADERS = ("content-type", "allow", "accept", "accept-encoding")
"""Answer headers that are recorded and compared."""

_TIMEOUT_S = 120.0
# Statuses of a busy machine, for a request or a single input. No request provokes them.
_BUSY = (429, 502, 503, 504)
_TRIES = 5


class RecordingError(Exception):
    """The service cannot be recorded; the message says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A line of a recording. `request` is described with the old names, even if the new ones were sent."""

    number: int
    names: Names
    request: dict[str, Any]
    status: int
    headers: dict[str, str]
    body: bytes

    def to_json(self) -> str:
        content = {name: getattr(self, name) for name in ("number", "names", "request", "status", "headers")}
        try:
            content["body"] = self.body.decode()
        except UnicodeDecodeError:
            content["base64"] = base64.b64encode(self.body).decode()
        return json.dumps(content, ensure_ascii=False)


def all_requests() -> list[Request]:
    """Return all requests in the order in which they are sent."""
    requests = [
        *text_requests.intent(330),
        *text_requests.replies(180),
        *ranking_requests.recommend(330),
        *explanation_requests.sentiment_explanations(120),
        *explanation_requests.intent_explanations(90),
        *explanation_requests.reply_explanations(80),
        *explanation_requests.recommendation_explanations(100),
        *ranking_requests.catalogues(90),
        *faulty_requests.faulty(),
        *faulty_requests.operations(),
    ]
    requests = [*text_requests.sentiment(REQUESTS - len(requests)), *requests]
    rng_of("order").shuffle(requests)
    return requests


def prepare(data_dir: Path, heed: str, names: Names) -> None:
    """Add the catalogue and the reply set to the data folder of a service. Raise RecordingError on failure."""
    variable = "HEED_SHELF" if names is Names.BEFORE else "HEED_DATA_DIR"
    with tempfile.TemporaryDirectory() as folder:
        items, replies = Path(folder) / "items.jsonl", Path(folder) / "replies.txt"
        lines = [json.dumps(item, ensure_ascii=False) for item in ranking_requests.catalogue_items()]
        items.write_text("\n".join(lines), encoding="utf-8")
        replies.write_text("\n".join(text_requests.reply_set()), encoding="utf-8")
        for command in (["catalogue", "add", CATALOGUE, str(items)], ["replies", "add", REPLY_SET, str(replies)]):
            try:
                subprocess.run([heed, *command], env=os.environ | {variable: str(data_dir.absolute())}, check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                raise RecordingError(f"heed {' '.join(command[:3])} failed: {error}") from None


def open_client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=_TIMEOUT_S, trust_env=False)


def record(client: httpx.Client, requests: Sequence[Request], file: Path, names: Names) -> None:
    """Write the answers of the service. Raise RecordingError if it cannot be recorded."""
    with file.open("w", encoding="utf-8") as lines:
        try:
            _require_prepared(client)
            for number, request in enumerate(requests, 1):
                lines.write(_answer(client, number, request, names).to_json() + "\n")
                if number % 200 == 0:
                    print(f"{number} of {len(requests)}", file=sys.stderr, flush=True)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RecordingError(f"{client.base_url}: {error!r}") from None


def read(file: Path) -> Iterator[Answer]:
    """Yield the answers of a recording. Raise ValueError or OSError if the file cannot be read."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            content = json.loads(line)
            body = content.pop("body", None)
            encoded = content.pop("base64", "")
            content["names"] = Names(content["names"])
            yield Answer(**content, body=base64.b64decode(encoded) if body is None else body.encode())


def _answer(client: httpx.Client, number: int, request: Request, names: Names) -> Answer:
    response = _send(client, request, names)
    headers = {name: response.headers[name] for name in HEADERS if name in response.headers}
    return Answer(number, names, request.describe(), response.status_code, headers, response.content)


def _send(client: httpx.Client, request: Request, names: Names) -> httpx.Response:
    """Send a request and retry it while the machine is busy. An edit is not retried: its second answer differs."""
    body = request.body if names is Names.BEFORE else rename_request(request.path, request.body)
    for attempt in range(_TRIES):
        response = client.request(request.method, request.path, content=body or None, headers=request.headers)
        if not _is_busy(response):
            return response
        if request.method == "PUT":
            break
        time.sleep(attempt)
    raise RecordingError(f"{request.method} {request.path}: {response.status_code} {response.text[:300]}")


def _is_busy(response: httpx.Response) -> bool:
    """Return whether the machine was too busy for the request or for one of its inputs."""
    return response.status_code in _BUSY or any(f'"status":{status},'.encode() in response.content for status in _BUSY)


def _require_prepared(client: httpx.Client) -> None:
    """Raise RecordingError unless the catalogue and the reply set are as `prepare` leaves them."""
    response = client.get(f"/v1/catalogues/{CATALOGUE}")
    models = client.get("/v1/models")
    if response.status_code != 200 or f'"{REPLY_SET}"' not in models.text:
        raise RecordingError("the service lacks the catalogue or the reply set: run `prepare` on its folder first")
    catalogue = response.json()
    if (catalogue["count"], catalogue["version"]) != (CATALOGUE_ITEMS, 1):
        raise RecordingError("the catalogue has been edited: start the service on a fresh folder")
