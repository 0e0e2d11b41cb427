"""Invalid requests (bodies, types, methods, routes, fields, targets) and requests for operators."""

from __future__ import annotations

from typing import Any

from tests.bench.answers.ranking_requests import CATALOGUE
from tests.bench.answers.requests import JSON_TYPE, Request, encode, post

_TURNS = [{"speaker": "customer", "text": "where is my card"}]
_HISTORY = [{"item_id": "22423", "event": "purchase"}]
_EDIT_PATH = f"/v1/catalogues/{CATALOGUE}/items"
_TOO_LARGE_BYTES = 2 * 2**20 + 1

_GOOD: dict[str, dict[str, Any]] = {
    "/v1/sentiment": {"inputs": "Acme soars"},
    "/v1/intent": {"inputs": "where is my card"},
    "/v1/replies": {"turns": _TURNS, "candidates": ["Which one?", "Goodbye."]},
    "/v1/recommend": {"inputs": {"history": _HISTORY}},
    "/v1/explain/sentiment": {"inputs": "Acme soars"},
    "/v1/explain/intent": {"inputs": "where is my card"},
    "/v1/explain/replies": {"turns": _TURNS, "candidates": ["Which one?", "Goodbye."]},
    "/v1/explain/recommend": {"inputs": {"history": _HISTORY}},
}
_GET_PATHS = ("/healthz", "/readyz", "/v1/models", "/v1/catalogues", f"/v1/catalogues/{CATALOGUE}")

_WRONG_BODIES = (
    b"",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"{}",
    b'{"inputs": NaN}',
    b'{"inputs": "caf\xe9"}',
    b'{"inputs": "\\ud800", "turns": "\\ud800"}',
    b'{"inputs": ' + b"[" * 3_000 + b"]" * 3_000 + b"}",
    b'{"inputs": "a" "b"}',
)
_WRONG_HEADERS: tuple[dict[str, str], ...] = (
    {},
    {"Content-Type": "text/plain"},
    {"Content-Type": "application/json; charset=latin-1"},
    {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    {"Content-Type": "application/json", "X-Request-Timeout-Ms": "soon"},
    {"Content-Type": "application/json", "X-Request-Timeout-Ms": "0"},
)
_TEXT_FIELDS: tuple[dict[str, Any], ...] = (
    {"inputs": None},
    {"inputs": 7},
    {"inputs": []},
    {"inputs": ""},
    {"inputs": ["  ", {"text": " "}]},
    {"inputs": ["a", 7]},
    {"inputs": {"txt": "a"}},
    {"inputs": {"text": "a", "id": 7}},
    {"inputs": {"text": "a", "id": "i" * 257}},
    {"inputs": ["a"] * 257},
    {"more": True},
)
_USER_FIELDS: tuple[dict[str, Any], ...] = (
    {"history": [{"event": "view"}]},
    {"history": [{"item_id": "22423"}]},
    {"history": [{"item_id": "22423", "event": "rating"}]},
    {"history": [{"item_id": "22423", "event": "rating", "value": 6}]},
    {"history": [{"item_id": "22423", "event": "view", "value": 3}]},
    {"history": [{"item_id": "22423", "event": "view", "at": "yesterday"}]},
    {"history": [{"item_id": "22423", "event": "view", "at": "2011-02-30T10:00:00Z"}]},
    {"history": [{"item_id": "22423", "event": "view", "at": "2999-01-01T00:00:00Z"}]},
    {"history": [*_HISTORY, {"item_id": "22086", "event": "view", "at": "2011-01-01T00:00:00Z"}]},
    {"history": [{"item_id": "gone-1", "event": "view"}]},
    {"history": [{"text": " ", "event": "view"}]},
    {"history": _HISTORY, "candidates": []},
    {"history": _HISTORY, "candidates": [{"item_id": "gone-1"}, {"item_id": "gone-2"}]},
    {"history": _HISTORY, "candidates": [{}]},
    {"history": _HISTORY, "catalogue": "nowhere"},
    {"history": _HISTORY, "top_k": 0},
    {"history": _HISTORY, "top_k": 2.5},
    {"history": _HISTORY, "newcomers": -1},
    {"history": _HISTORY, "newcomers": "2"},
    {"history": _HISTORY, "filter": {"colour": "red"}},
    {"history": _HISTORY, "filter": {"price": {"near": 5}}},
    {"history": _HISTORY, "filter": {"price": {"lt": "five"}}},
    {"history": _HISTORY, "on_unknown": "guess"},
    {"history": None},
    {"history": _HISTORY, "id": 7},
)
_MAP_FIELDS: tuple[dict[str, Any], ...] = (
    {"method": "attention"},
    {"method": "attention", "layers": [99]},
    {"method": "attention", "layers": [0], "heads": [99]},
    {"method": "attention", "layers": [0], "heads": "some"},
    {"method": "attention", "layers": []},
    {"method": "attention", "layers": [0], "reduce": "rollout"},
    {"method": "attention", "layers": [0], "reduce": "max"},
    {"layers": [0]},
    {"method": "both_ends", "reduce": "mean"},
    {"method": "lime"},
)


def faulty() -> list[Request]:
    """Return all invalid requests in a fixed order."""
    return [
        *(Request("POST", path, body, dict(JSON_TYPE)) for path in _GOOD for body in _WRONG_BODIES),
        *(Request("POST", path, encode(_GOOD[path]), dict(headers)) for path in _GOOD for headers in _WRONG_HEADERS),
        *_wrong_routes(),
        *_wrong_texts(),
        *_wrong_dialogues(),
        *_wrong_users(),
        *_wrong_explanations(),
        *_wrong_edits(),
        *_too_large(),
    ]


def operations() -> list[Request]:
    """Return requests to the routes without a task, and bodies with another JSON type."""
    other_type = {"Content-Type": "application/vnd.heed+json; charset=UTF-8"}
    return [
        *(Request("GET", path) for path in _GET_PATHS for _ in range(4)),
        *(Request("GET", f"{path}?verbose=1") for path in _GET_PATHS),
        *(Request("POST", path, encode(body), dict(other_type)) for path, body in _GOOD.items()),
        *(post(path, body, **{"x-request-timeout-ms": "60000"}) for path, body in _GOOD.items()),
    ]


def _wrong_routes() -> list[Request]:
    paths = ("/nothing", "/v1", "/v1/sentiment/", "/v1/Sentiment", "/v1/catalogues/", "/v2/intent", "/console/none.js")
    names = ("nowhere", "%2e%2e", "a%20b", ".hidden", "红", "x" * 200)
    return [
        *(Request("GET", path) for path in paths),
        *(Request("GET", f"/v1/catalogues/{name}") for name in names),
        *(Request(method, path) for path in _GOOD for method in ("GET", "PUT")),
        *(Request(method, path) for path in _GET_PATHS for method in ("POST", "DELETE")),
        *(Request(method, "/v1/sentiment") for method in ("HEAD", "OPTIONS", "PATCH")),
        Request("POST", _EDIT_PATH, encode({"remove": ["b-1"]}), dict(JSON_TYPE)),
    ]


def _wrong_texts() -> list[Request]:
    paths = ("/v1/sentiment", "/v1/intent", "/v1/explain/sentiment")
    long = "Shares of Acme soar. " * 200
    return [
        *(post(path, _GOOD[path] | fields) for path in paths for fields in _TEXT_FIELDS),
        *(post(path, {"inputs": long, "truncate": False}) for path in paths[:2]),
        post("/v1/sentiment", {"inputs": [long, long], "truncate": False}),
        post("/v1/sentiment", {"inputs": "a", "truncate": "no"}),
        post("/v1/sentiment", {"inputs": {"text": "a", "entity": " "}}),
        post("/v1/intent", {"inputs": "a", "labels": "nothing"}),
        post("/v1/intent", {"inputs": "a", "labels": 7}),
        post("/v1/intent", {"inputs": "a", "labels": "l" * 129}),
        post("/v1/intent", {"inputs": "a", "threshold": 1.5}),
        post("/v1/intent", {"inputs": "a", "top_k": 101}),
        post("/v1/intent", {"inputs": {"text": "a", "turns": _TURNS}}),
        post("/v1/intent", {"inputs": [{"turns": [{"speaker": "agent", "text": "Hello"}]}]}),
        post("/v1/intent", {"inputs": {"turns": [{"speaker": "robot", "text": "Hello"}]}}),
        post("/v1/intent", {"inputs": {"turns": [{"speaker": "customer", "text": " "}]}}),
        post("/v1/intent", {"inputs": {"turns": []}}),
    ]


def _wrong_dialogues() -> list[Request]:
    fields: tuple[dict[str, Any], ...] = (
        {"turns": _TURNS},
        {"turns": _TURNS, "candidates": ["a"], "reply_set": "answers-en"},
        {"turns": _TURNS, "reply_set": "nothing"},
        {"turns": _TURNS, "candidates": ["a", "b", "a"]},
        {"turns": _TURNS, "candidates": ["a", " "]},
        {"turns": _TURNS, "candidates": []},
        {"turns": [], "candidates": ["a"]},
        {"turns": [{"speaker": "agent", "text": "Hello"}], "candidates": ["a"]},
        {"turns": [{"speaker": "customer"}], "candidates": ["a"]},
        {"turns": _TURNS, "candidates": ["a"], "labels": "banking77"},
    )
    return [post(path, body) for path in ("/v1/replies", "/v1/explain/replies") for body in fields]


def _wrong_users() -> list[Request]:
    """Return single users, lists whose first user is valid, and explanations of every second user."""
    recommend = [post("/v1/recommend", {"inputs": fields}) for fields in _USER_FIELDS]
    listed = [post("/v1/recommend", {"inputs": [{"history": _HISTORY}, fields]}) for fields in _USER_FIELDS]
    return [*recommend, *listed, *(post("/v1/explain/recommend", {"inputs": fields}) for fields in _USER_FIELDS[::2])]


def _wrong_explanations() -> list[Request]:
    no_history: dict[str, Any] = {"history": []}
    return [
        *(post("/v1/explain/sentiment", {"inputs": "Acme soars"} | fields) for fields in _MAP_FIELDS),
        *(post("/v1/explain/intent", {"inputs": "hello"} | fields) for fields in _MAP_FIELDS[::3]),
        post("/v1/explain/sentiment", {"inputs": ["Acme soars"] * 17}),
        post("/v1/explain/sentiment", {"inputs": ["Acme soars"] * 5, "method": "attention", "layers": [0]}),
        post("/v1/explain/sentiment", {"inputs": "Acme soars. " * 200, "method": "attention", "layers": [0, 1, 2]}),
        post("/v1/explain/sentiment", {"inputs": "Acme soars", "target": "good"}),
        post("/v1/explain/intent", {"inputs": ["hello"] * 17}),
        post("/v1/explain/intent", {"inputs": "hello", "target": "no_such_intent"}),
        post("/v1/explain/intent", {"inputs": "hello", "labels": "nothing"}),
        post("/v1/explain/intent", {"inputs": "hello", "labels": []}),
        post("/v1/explain/replies", {"turns": _TURNS, "candidates": ["a", "b"], "target": 2}),
        post("/v1/explain/replies", {"turns": _TURNS, "candidates": ["a", "b"], "target": -1}),
        post("/v1/explain/replies", {"turns": _TURNS, "candidates": ["a"], "method": "value_norm"}),
        post("/v1/explain/replies", {"turns": _TURNS, "candidates": [f"reply {n}" for n in range(65)]}),
        post("/v1/explain/recommend", {"inputs": no_history}),
        post("/v1/explain/recommend", {"inputs": [{"history": _HISTORY}, no_history]}),
        post("/v1/explain/recommend", {"inputs": [{"history": _HISTORY}] * 17}),
        post("/v1/explain/recommend", {"inputs": {"history": _HISTORY, "target": "gone-1"}}),
        post("/v1/explain/recommend", {"inputs": {"history": _HISTORY}, "method": "value_norm"}),
        post("/v1/explain/recommend", {"inputs": {"history": _HISTORY}, "layers": [0]}),
    ]


def _wrong_edits() -> list[Request]:
    item = {"item_id": "b-1", "text": "a kettle"}
    bodies: tuple[dict[str, Any], ...] = (
        {},
        {"items": [item, item]},
        {"items": [item], "remove": ["b-1"]},
        {"items": [{"item_id": "b-1", "text": " "}]},
        {"items": [{"item_id": "", "text": "a"}]},
        {"items": [item | {"popularity": -1}]},
        {"items": [item | {"attributes": {"size": 2**60}}]},
        {"items": [item | {"attributes": {"size": [1]}}]},
        {"items": [item | {"colour": "red"}]},
    )
    return [
        *(Request("PUT", _EDIT_PATH, encode(body), dict(JSON_TYPE)) for body in bodies),
        Request("PUT", _EDIT_PATH, encode({"items": [item]}), {"Content-Type": "text/plain"}),
        Request("PUT", _EDIT_PATH, b"{", dict(JSON_TYPE)),
        Request("PUT", "/v1/catalogues/nowhere/items", encode({"items": [item]}), dict(JSON_TYPE)),
    ]


def _too_large() -> list[Request]:
    body = b'{"inputs": "' + b"a" * _TOO_LARGE_BYTES + b'"}'
    paths = ("/v1/sentiment", "/v1/recommend", "/v1/explain/intent")
    return [Request("POST", path, body, dict(JSON_TYPE)) for path in paths]
