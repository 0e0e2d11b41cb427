"""Tiny HTTP servers in this process, which answer with the bytes that a test names."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it was read."""

    index: int  # of all that this server has read
    method: str
    path: str
    headers: Sequence[str]
    body: bytes


Answer = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]
"""Answers a request. The connection stays open unless it closes the writer."""


@dataclass
class Server:
    """A running server: its port, the requests that it read, and its number of connections."""

    port: int
    requests: list[Request] = field(default_factory=list)
    connections: int = 0


def sends(*wires: bytes, close: bool = False) -> Answer:
    """Return an answer that sends these bytes in turn, one of them per request."""

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(wires[request.index % len(wires)])
        await writer.drain()
        if close:
            writer.close()

    return answer


def sends_in_pieces(wire: bytes) -> Answer:
    """Return an answer whose bytes arrive one by one."""

    async def answer(_: Request, writer: asyncio.StreamWriter) -> None:
        for position in range(len(wire)):
            writer.write(wire[position : position + 1])
            await asyncio.sleep(0.0005)

    return answer


def delays(seconds: float) -> Answer:
    """Return an answer that comes late."""

    async def answer(_: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds)
        writer.write(OK)

    return answer


def answers_once() -> Answer:
    """Return an answer to the first request of each connection, which closes it at the second."""
    answered = set()

    async def answer(_: Request, writer: asyncio.StreamWriter) -> None:
        if writer in answered:
            writer.close()
        else:
            answered.add(writer)
            writer.write(OK)

    return answer


async def never_answers(_: Request, __: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def resets(_: Request, writer: asyncio.StreamWriter) -> None:
    """Send part of an answer, then break the connection off."""
    writer.write(OK[:10])
    await writer.drain()
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _read(reader: asyncio.StreamReader, server: Server) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *headers = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    lengths = [int(line.partition(":")[2]) for line in headers if line.lower().startswith("content-length:")]
    body = await reader.readexactly(lengths[0] if lengths else 0)
    request = Request(len(server.requests), method, path, headers, body)
    server.requests.append(request)
    return request


@contextlib.contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    """Run a server in a thread until the block ends."""
    server, loop, ends = Server(0), asyncio.new_event_loop(), asyncio.Event()
    ready = threading.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        try:
            while not writer.is_closing():
                await answer(await _read(reader, server), writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has left, or the server ends
        finally:
            writer.close()

    async def serve() -> None:
        listening = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=1024)
        server.port = listening.sockets[0].getsockname()[1]
        ready.set()
        await ends.wait()
        listening.close()
        handlers = asyncio.all_tasks() - {asyncio.current_task()}
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        await asyncio.sleep(0)  # lets the event loop close the connections

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(30)
        yield server
    finally:
        loop.call_soon_threadsafe(ends.set)
        thread.join(30)
        loop.close()
