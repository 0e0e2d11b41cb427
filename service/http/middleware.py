"""Middleware for every request: it sets an id, counts the request once, and answers every exception.

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
from service.http.problems import renderer
from service.telemetry.metrics import Metrics

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_ABANDONED = 499  # counted when the client went away before there was an answer


class RequestMiddleware:
    """The ASGI middleware; an instance serves all requests."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (path := scope["path"])[-1:] == "/" and len(path) > 1:
            scope = {**scope, "path": path[:-1]}
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        state = _RequestState(scope, send, self._metrics)
        try:
            await self._app(scope, receive, state.send)
        except asyncio.CancelledError:
            state.count(_ABANDONED)
            raise
        except Exception as error:  # a caller gets a problem and never a closed connection
            if state.status:
                raise
            await renderer(scope)(from_unknown(error), state.request_id)(scope, receive, state.send)


def _without_body(send: Send) -> Send:
    """Return a way to send an answer without its body; the headers stay those of GET (RFC 9110)."""

    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return send_head


class _RequestState:
    """The id of a request, and the status and time of its answer."""

    def __init__(self, scope: Scope, send: Send, metrics: Metrics) -> None:
        caller_id = Headers(scope=scope).get("x-request-id", "")
        self.request_id = caller_id if _SANE_ID.fullmatch(caller_id) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = self.request_id
        self.status = 0
        self._scope = scope
        self._send = send
        self._metrics = metrics
        self._started_s = time.perf_counter()
        self._counted = False

    async def send(self, message: Message) -> None:
        """Send a message of the answer, with the id in its headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["X-Request-ID"] = self.request_id
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            # Before the last byte leaves, so that the next scrape counts every answer that a client has read.
            self.count(self.status)
        await self._send(message)

    def count(self, status: int) -> None:
        """Count the request, if it is not counted yet."""
        if self._counted:
            return
        self._counted = True
        route = getattr(self._scope.get("route"), "path", "other")
        self._metrics.record_request(route, status, time.perf_counter() - self._started_s)
