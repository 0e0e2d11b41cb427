"""Request bodies: their type, their size, the time they may take, and the JSON in them as a validated model.

A reader holds no more than the limit in memory, and all readers together no more than their application's budget.
Every wrong body is a Problem. `service.http.validation` says what is wrong with the JSON in it. This knows no task.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request

from service.errors import BodyTimeout, BodyTooLarge, MalformedBody, Overloaded, Problem, UnsupportedMediaType
from service.fairness.byte_budget import ByteBudget, Lease
from service.fairness.client import CLIENT
from service.http.validation import parse

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # that some editors put before UTF-8, and RFC 8259 lets a reader ignore
# The service reads and drops the rest of a body that is too large, up to these limits. A client that is still sending
# when the connection closes would see a broken pipe instead of the answer.
_DRAIN_BYTES = 16 * 2**20
_DRAIN_S = 1.0

Model = TypeVar("Model", bound=BaseModel)


class JsonBody(Generic[Model]):
    """The body of a request, read as a `model`.

    `fast_parser` is a faster way to the same model. It raises ValueError for a body that it cannot parse. `parse` then
    says what is wrong with that body. `item_fields` are the lists of the model in which a wrong item affects no other.
    """

    def __init__(
        self,
        model: type[Model],
        max_bytes: int,
        timeout_s: float,
        fast_parser: Callable[[bytes], Model] | None = None,
        item_fields: Sequence[str] = ("inputs",),
    ) -> None:
        self._model = model
        self._fast_parser = fast_parser
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._item_fields = item_fields

    async def read(self, request: Request) -> Model:
        """Return the body as a model, with an `InvalidItem` for each wrong item; raise a Problem for a wrong body."""
        _check_media_type(request)
        budget: ByteBudget = request.app.state.body_budget
        with budget.lease(CLIENT.get()) as lease:
            body = (await self._read_bytes(request, lease)).removeprefix(_BYTE_ORDER_MARK)
            model = self._parse(body)
        request.state.items = self._count_items(model)  # for the access log
        return model

    def _parse(self, body: bytes) -> Model:
        if self._fast_parser is not None:
            with suppress(ValueError):
                return self._fast_parser(body)
        return parse(self._model, body, self._item_fields)

    def _count_items(self, model: Model) -> int:
        """Return the number of things that a body has: inputs, or items to add or change and ids to remove."""
        lists = (getattr(model, name, None) for name in self._item_fields)
        return sum(len(value) if isinstance(value, list) else value is not None for value in lists)

    async def _read_bytes(self, request: Request, lease: Lease) -> bytes:
        stream, body = request.stream(), bytearray()
        try:
            lease.grow_to(self._checked(_declared_length(request)))
            async with asyncio.timeout(self._timeout_s):
                async for chunk in stream:
                    lease.grow_to(self._checked(len(body) + len(chunk)))
                    body += chunk
        except (BodyTooLarge, Overloaded) as problem:
            has_sent = bool(body) or "expect" not in request.headers  # else the client waits for "100 Continue"
            body.clear()
            if has_sent:
                await _drain(stream)
            raise _closing(problem) from None
        except TimeoutError:
            raise _closing(BodyTimeout(f"The body was not complete within {self._timeout_s:g} s.")) from None
        except ClientDisconnect:
            raise MalformedBody("The body was not complete.") from None
        return bytes(body)

    def _checked(self, size: int) -> int:
        if size > self._max_bytes:
            raise BodyTooLarge(f"The body is larger than {self._max_bytes} bytes.")
        return size


def _closing(problem: Problem) -> Problem:
    """Return the problem with its connection closed: the rest of the body may still arrive."""
    problem.headers["Connection"] = "close"
    return problem


def _check_media_type(request: Request) -> None:
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    media_type = media_type.strip().lower()
    is_json = media_type.startswith("application/") and media_type.endswith("+json")
    if not is_json and media_type != "application/json":
        raise UnsupportedMediaType("Send application/json.", headers={"Accept": "application/json"})
    charset = parameters.partition("charset=")[2].strip(' "').lower()
    if charset not in ("", "utf-8", "utf8"):
        raise UnsupportedMediaType("Send UTF-8.", headers={"Accept": "application/json"})
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("Send the body without compression.", headers={"Accept-Encoding": "identity"})


def _declared_length(request: Request) -> int:
    """Return the Content-Length, or 0 without a valid one; the reader counts the bytes in any case."""
    declared = request.headers.get("content-length", "0")
    return int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 19 else 0


async def _drain(stream: AsyncIterator[bytes]) -> None:
    """Read and drop a body, up to a number of bytes and a time."""
    remaining_bytes = _DRAIN_BYTES
    try:
        async with asyncio.timeout(_DRAIN_S):
            async for chunk in stream:
                remaining_bytes -= len(chunk)
                if remaining_bytes < 0:
                    return
    except (TimeoutError, ClientDisconnect):
        return
