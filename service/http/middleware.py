"""What happens to every request alike: it gets an id, it is counted once, and it never ends in a bare exception.

Pure ASGI and outermost but for Starlette's own last resort. Knows nothing of routes beyond the name of the one chosen.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import from_unknown
from service.http.problems import render
from service.telemetry.metrics import Metrics

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_ABANDONED = 499  # counted when the client went away before there was an answer


class RequestMiddleware:
    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _RequestState(scope, send, self._metrics)
        try:
            await self._app(scope, receive, exchange.send)
        except asyncio.CancelledError:
            exchange.count(_ABANDONED)
            raise
        except Exception as error:  # the last line: whatever this is, the caller gets a problem and not a hang-up
            if exchange.status:
                raise
            await render(from_unknown(error), exchange.request_id)(scope, receive, exchange.send)


class _RequestState:
    """One request and its answer on the way out."""

    def __init__(self, scope: Scope, send: Send, metrics: Metrics) -> None:
        given = Headers(scope=scope).get("x-request-id", "")
        self.request_id = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = self.request_id
        self.status = 0
        self._scope = scope
        self._send = send
        self._metrics = metrics
        self._started_s = time.perf_counter()
        self._counted = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["X-Request-ID"] = self.request_id
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            # Before the last byte leaves: who has read the whole answer must find it in the next scrape.
            self.count(self.status)
        await self._send(message)

    def count(self, status: int) -> None:
        if self._counted:
            return
        self._counted = True
        route = getattr(self._scope.get("route"), "path", "other")
        self._metrics.record_request(route, status, time.perf_counter() - self._started_s)
