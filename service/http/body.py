"""A request's body: its type, its size, the time it may take, and the JSON in it as a checked model.

Reads no more than the limit into memory. Every way in which a body can be wrong leaves here as a Problem; a wrong value
comes with a JSON pointer into the caller's own document. Knows nothing of what the body is for.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Generic, NoReturn, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request

from service.errors import (
    BodyTimeout,
    BodyTooLarge,
    InvalidRequest,
    MalformedBody,
    MalformedJson,
    Problem,
    UnsupportedMediaType,
)
from service.schemas.wire import UNION_TAGS

_MAX_POINTER_CHARS = 200
_MAX_FAULTS = 2_000  # a list of 256 wrong items has fewer
# A body that is refused for its size is read and dropped for a while: a client that is still sending when the
# connection closes would see a broken pipe and not the answer.
_DRAIN_BYTES = 16 * 2**20
_DRAIN_S = 1.0

Model = TypeVar("Model", bound=BaseModel)


class JsonBody(Generic[Model]):
    """Reads a request's body as a `model`.

    `quick` is a faster way to the same model; what it refuses, with a ValueError, is parsed to say what is wrong.
    """

    def __init__(
        self, model: type[Model], max_bytes: int, timeout_s: float, quick: Callable[[bytes], Model] | None = None
    ) -> None:
        self._model = model
        self._quick = quick
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def read(self, request: Request) -> Model:
        """Raises a Problem for every way in which the body can be wrong."""
        _check_type(request)
        body = await self._bytes(request)
        if self._quick is not None:
            with suppress(ValueError):
                return self._quick(body)
        return parse(self._model, body)

    async def _bytes(self, request: Request) -> bytes:
        if _declared_length(request) > self._max_bytes:
            if "expect" not in request.headers:  # who waits for "100 Continue" has sent nothing yet
                await _drain(request.stream())
            raise self._too_large()
        body = bytearray()
        stream = request.stream()
        try:
            async with asyncio.timeout(self._timeout_s):
                async for chunk in stream:
                    body += chunk
                    if len(body) > self._max_bytes:
                        body.clear()
                        await _drain(stream)
                        raise self._too_large()
        except TimeoutError:
            raise BodyTimeout(f"The body was not complete within {self._timeout_s:g} s.") from None
        except ClientDisconnect:
            raise MalformedBody("The body was not complete.") from None
        return bytes(body)

    def _too_large(self) -> Problem:
        # The rest of the body may still be under way, so the connection cannot be used again.
        return BodyTooLarge(f"The body is larger than {self._max_bytes} bytes.", headers={"Connection": "close"})


def parse(model: type[Model], body: bytes) -> Model:
    """The body as a model; raises MalformedJson, MalformedBody or InvalidRequest."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        faults = _faults(error)
    if faults[0]["type"] == "json_invalid":
        _refuse_malformed(model, body, faults[0]["msg"])
    _refuse_loose_numbers(body)
    raise _invalid(faults[0])


def json_pointer(location: tuple[int | str, ...]) -> str:
    """A JSON pointer for the location of a pydantic error, without the names of union branches."""
    parts, branch = [], True  # what follows a branch name, or begins the location, is the caller's own key
    for part in location:
        branch = part in UNION_TAGS and not branch
        if not branch:
            parts.append("/" + str(part).replace("~", "~0").replace("/", "~1"))
    # A key may hold lone surrogates, which no UTF-8 answer can.
    return "".join(parts)[:_MAX_POINTER_CHARS].encode("utf-8", "replace").decode("utf-8")


def _faults(error: ValidationError) -> list[ErrorDetails]:
    """What is wrong, in the order of the schema; bounded, because spelling out 180,000 faults takes over a second."""
    if error.error_count() > _MAX_FAULTS:
        raise InvalidRequest(f"{error.error_count()} values are wrong or unknown.", pointer="") from None
    return error.errors(include_url=False, include_context=False, include_input=False)


def _invalid(error: ErrorDetails) -> InvalidRequest:
    return InvalidRequest(error["msg"] + ".", pointer=json_pointer(error["loc"]))


def _refuse_malformed(model: type[BaseModel], body: bytes, reason: str) -> NoReturn:
    """Say what is wrong with a body that pydantic's parser gave up on.

    Lone surrogates are the odd one: the parser calls them malformed, the JSON grammar allows them. They are wrong
    values, and get the pointer of one.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedBody(f"The body is not UTF-8 at byte {error.start}.") from None
    malformed = MalformedJson(reason + ".")
    if "\\ud" not in text and "\\uD" not in text:
        raise malformed
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise malformed from None
    try:
        model.model_validate(document)
    except ValidationError as error:
        faults = _faults(error)
        raise _invalid(next((fault for fault in faults if fault["type"] == "string_unicode"), faults[0])) from None
    raise malformed


def _refuse_loose_numbers(body: bytes) -> None:
    """NaN and Infinity are not JSON; pydantic's parser takes them for numbers, a strict one does not."""
    if b"NaN" not in body and b"Infinity" not in body:
        return
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedJson(f"Invalid JSON: {error.msg}.") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _check_type(request: Request) -> None:
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    kind = kind.strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedMediaType("Send application/json.", headers={"Accept": "application/json"})
    charset = parameters.partition("charset=")[2].strip(' "').lower()
    if charset not in ("", "utf-8", "utf8"):
        raise UnsupportedMediaType("Send UTF-8.", headers={"Accept": "application/json"})
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("Send the body without compression.", headers={"Accept-Encoding": "identity"})


def _declared_length(request: Request) -> int:
    """Content-Length, or 0 when there is none that can be believed; the bytes are counted in any case."""
    declared = request.headers.get("content-length", "0")
    return int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 19 else 0


async def _drain(stream: AsyncIterator[bytes]) -> None:
    left = _DRAIN_BYTES
    try:
        async with asyncio.timeout(_DRAIN_S):
            async for chunk in stream:
                left -= len(chunk)
                if left < 0:
                    return
    except (TimeoutError, ClientDisconnect):
        return
