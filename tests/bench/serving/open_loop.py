"""An open loop: requests are sent at a constant rate, independent of the answers.

Latency counts from when a request was due, so a server that stalls cannot hide it (no coordinated omission). Every
request has a connection of its own while it waits. After its deadline, the caller closes the connection. No packaged
generator sends a different body with each request at a constant rate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from itertools import cycle

from httptools import HttpParserError, HttpResponseParser

from tests.bench.harness.closed_loop import Load, percentile_ms

_POLL_S = 0.01  # between looks at the pending requests, after the last one was sent


class _Connection(asyncio.Protocol):
    """A connection with at most one pending request. It parses answers with httptools, as uvicorn does."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._transport: asyncio.Transport | None = None
        self._parser = HttpResponseParser(self)
        self.due_s = 0.0
        self.waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, request: bytes, due_s: float) -> None:
        assert self._transport is not None
        self._parser, self.due_s, self.waiting = HttpResponseParser(self), due_s, True
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except HttpParserError:
            self.give_up()

    def on_message_complete(self) -> None:
        if self.waiting:
            self.waiting = False
            self._run.answered(self, self._parser.get_status_code() == 200)

    def connection_lost(self, _: Exception | None) -> None:
        self._run.lost(self)

    def give_up(self) -> None:
        self.waiting = False
        if self._transport is not None:
            self._transport.abort()


class _Run:
    """The state of an open loop: waiting and free connections, and the counts."""

    def __init__(self, port: int, deadline_s: float) -> None:
        self._port = port
        self._deadline_s = deadline_s
        self._free: list[_Connection] = []
        self._waiting: dict[_Connection, None] = {}  # in the order of their due times
        self._opening: set[asyncio.Task[None]] = set()
        self.latencies_s: list[float] = []
        self.refused = self.broken = self.late = 0

    def submit(self, request: bytes, due_s: float) -> None:
        if self._free:
            self._send(self._free.pop(), request, due_s)
        else:
            task = asyncio.ensure_future(self._open(request, due_s))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, request: bytes, due_s: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
        except OSError:
            self.broken += 1
        else:
            self._opened(connection, request, due_s)

    def _opened(self, connection: _Connection, request: bytes, due_s: float) -> None:
        if time.perf_counter() - due_s < self._deadline_s:
            self._send(connection, request, due_s)
        else:
            self.late += 1
            connection.give_up()

    def _send(self, connection: _Connection, request: bytes, due_s: float) -> None:
        self._waiting[connection] = None
        connection.send(request, due_s)

    def answered(self, connection: _Connection, good: bool) -> None:
        del self._waiting[connection]
        self._free.append(connection)
        if good:
            self.latencies_s.append(time.perf_counter() - connection.due_s)
        else:
            self.refused += 1

    def lost(self, connection: _Connection) -> None:
        if connection in self._free:
            self._free.remove(connection)
        elif connection in self._waiting:
            del self._waiting[connection]
            self.broken += 1

    def expire(self, now_s: float) -> None:
        while self._waiting:
            oldest = next(iter(self._waiting))
            if now_s - oldest.due_s < self._deadline_s:
                return
            del self._waiting[oldest]
            self.late += 1
            oldest.give_up()

    async def close(self) -> None:
        for connection in self._free:
            connection.give_up()
        await asyncio.sleep(0)  # lets the event loop close them

    @property
    def pending(self) -> bool:
        return bool(self._waiting or self._opening)


def measure(port: int, requests: Sequence[bytes], rate: float, seconds: float, deadline_s: float) -> Load:
    """Send `rate` requests per second. Return when the last one was answered or its deadline has passed."""
    return asyncio.run(_measure(port, requests, rate, seconds, deadline_s))


async def _measure(port: int, requests: Sequence[bytes], rate: float, seconds: float, deadline_s: float) -> Load:
    run = _Run(port, deadline_s)
    bodies: Iterator[bytes] = cycle(requests)
    sent, total = 0, int(rate * seconds)
    cpu_s, started_s = time.process_time(), time.perf_counter()
    while sent < total or run.pending:
        run.expire(time.perf_counter())
        due_s = started_s + sent / rate
        if sent < total and due_s <= time.perf_counter():
            run.submit(next(bodies), due_s)
            sent += 1
        else:
            await asyncio.sleep(due_s - time.perf_counter() if sent < total else _POLL_S)
    cpu_s = time.process_time() - cpu_s
    await run.close()
    in_time = [latency_s for latency_s in run.latencies_s if latency_s <= deadline_s]
    return Load(
        seconds=seconds,
        answered=len(in_time),
        refused=run.refused,
        broken=run.broken,
        late=run.late + len(run.latencies_s) - len(in_time),
        p50_ms=percentile_ms(in_time, 50),
        p99_ms=percentile_ms(in_time, 99),
        generator_cpu_s=cpu_s,
    )
