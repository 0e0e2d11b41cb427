"""One request of the recording, as plain data."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random
from typing import Any

SEED = 18
JSON_TYPE = {"Content-Type": "application/json"}
_MAX_SHOWN_BYTES = 20_000


@dataclass(frozen=True, slots=True)
class Request:
    """`body` is in the names from before the renames."""

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    def described(self) -> dict[str, Any]:
        """Return what a recording says of the request: a large or unreadable body by its digest alone."""
        try:
            body = self.body.decode() if len(self.body) <= _MAX_SHOWN_BYTES else None
        except UnicodeDecodeError:
            body = None
        if body is None:
            body = f"{len(self.body)} bytes, sha256 {sha256(self.body).hexdigest()}"
        return {"method": self.method, "path": self.path, "headers": self.headers, "body": body}


def post(path: str, document: object, **headers: str) -> Request:
    """Return a request with a JSON body; `accept` becomes the header Accept."""
    return Request("POST", path, encode(document), JSON_TYPE | {name.title(): value for name, value in headers.items()})


def encode(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


def rng_of(group: str) -> Random:
    """Return the generator of one group, so that a change of one group leaves the others alone."""
    return Random(f"{SEED} {group}")
