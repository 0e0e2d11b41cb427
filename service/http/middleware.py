"""Middleware for every request: it sets an id, counts and logs the request once, and answers every exception.

It says which client the request is from (`service.fairness.client`), for fair shares.
It answers HEAD as GET without the body, and a path with a slash at its end as the path without it.

It is pure ASGI, and outermost but for Starlette's last resort. It knows only the path of the matching route.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import from_unknown
from service.fairness.client import CLIENT, client_of
from service.http.problems import renderer
from service.telemetry.access_log import AccessLog, AccessRecord
from service.telemetry.logs import REQUEST_ID
from service.telemetry.metrics import Metrics

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_ABANDONED = 499  # counted when the client went away before there was an answer


class RequestMiddleware:
    """The ASGI middleware; an instance serves all requests."""

    def __init__(self, app: ASGIApp, metrics: Metrics, access_log: AccessLog | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (path := scope["path"])[-1:] == "/" and len(path) > 1:
            scope = {**scope, "path": path[:-1]}
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        state = _RequestState(scope, receive, send, self._metrics, self._access_log)
        token = REQUEST_ID.set(state.request_id)
        client_token = CLIENT.set(_client_of(scope))
        try:
            await self._app(scope, state.receive, state.send)
        except asyncio.CancelledError:
            state.count(_ABANDONED)
            raise
        except Exception as error:  # a caller gets a problem and never a closed connection
            problem = from_unknown(error)
            if state.status:  # too late for another answer
                state.count(problem.status, problem.code)
                raise
            await renderer(scope)(problem, state.request_id)(scope, receive, state.send)
        finally:
            REQUEST_ID.reset(token)
            CLIENT.reset(client_token)


def _client_of(scope: Scope) -> str:
    """Return the client of a request. Behind a trusted proxy the HTTP server takes it from `X-Forwarded-For`."""
    client = scope.get("client")
    return client_of(client[0]) if client else ""


def _without_body(send: Send) -> Send:
    """Return a way to send an answer without its body; the headers stay those of GET (RFC 9110)."""

    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return send_head


class _RequestState:
    """The id of a request, the status and time of its answer, and the bytes of both."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, metrics: Metrics, access_log: AccessLog | None
    ) -> None:
        caller_id = Headers(scope=scope).get("x-request-id", "")
        self.request_id = caller_id if _SANE_ID.fullmatch(caller_id) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = self.request_id
        self.status = 0
        self._scope = scope
        self._receive = receive
        self._send = send
        self._metrics = metrics
        self._access_log = access_log
        self._bytes_in = self._bytes_out = 0
        self._started_s = time.perf_counter()
        self._counted = False

    async def receive(self) -> Message:
        """Receive a part of the request, and count its bytes."""
        message = await self._receive()
        self._bytes_in += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        """Send a message of the answer, with the id in its headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["X-Request-ID"] = self.request_id
        elif message["type"] == "http.response.body":
            self._bytes_out += len(message.get("body", b""))
            if not message.get("more_body", False):
                # Before the last byte leaves, so that the next scrape counts every answer that a client has read.
                self.count(self.status)
        await self._send(message)

    def count(self, status: int, code: str | None = None) -> None:
        """Count and log the request, if that is not done yet. `code` is that of the problem, if it was not rendered."""
        if self._counted:
            return
        self._counted = True
        route = getattr(self._scope.get("route"), "path", "other")
        seconds = time.perf_counter() - self._started_s
        self._metrics.record_request(route, status, seconds)
        if self._access_log is not None:
            state = self._scope["state"]
            self._access_log.write(
                AccessRecord(
                    self.request_id,
                    self._scope["method"],
                    route,
                    status,
                    seconds,
                    state.get("items", 0),
                    self._bytes_in,
                    self._bytes_out,
                    code or state.get("problem_code"),
                )
            )
