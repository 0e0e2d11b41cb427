"""Request bodies: their type, their size, the time they may take, and the JSON in them as a validated model.

A reader holds no more than the limit in memory. Every wrong body is a Problem. A wrong value has a JSON pointer into
the caller's document. This knows no task.
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

_LISTS = ("inputs", "items", "remove")  # fields of bodies
_MAX_POINTER_CHARS = 200
_MAX_FAULTS = 2_000  # a list of 256 wrong items has fewer
# The service reads and drops the rest of a body that is too large, up to these limits. A client that is still sending
# when the connection closes would see a broken pipe instead of the answer.
_DRAIN_BYTES = 16 * 2**20
_DRAIN_S = 1.0

Model = TypeVar("Model", bound=BaseModel)


class JsonBody(Generic[Model]):
    """The body of a request, read as a `model`.

    `fast_parser` is a faster way to the same model. It raises ValueError for a body that it cannot parse. `parse` then
    says what is wrong with that body.
    """

    def __init__(
        self, model: type[Model], max_bytes: int, timeout_s: float, fast_parser: Callable[[bytes], Model] | None = None
    ) -> None:
        self._model = model
        self._fast_parser = fast_parser
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def read(self, request: Request) -> Model:
        """Return the body as a model; raise a Problem for a wrong body."""
        _check_media_type(request)
        body = await self._read_bytes(request)
        model = self._parse(body)
        request.state.items = _count_items(model)  # for the access log
        return model

    def _parse(self, body: bytes) -> Model:
        if self._fast_parser is not None:
            with suppress(ValueError):
                return self._fast_parser(body)
        return parse(self._model, body)

    async def _read_bytes(self, request: Request) -> bytes:
        if _declared_length(request) > self._max_bytes:
            if "expect" not in request.headers:  # a client that waits for "100 Continue" has sent nothing yet
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
        # The rest of the body may still arrive, so no other request can use the connection.
        return BodyTooLarge(f"The body is larger than {self._max_bytes} bytes.", headers={"Connection": "close"})


def _count_items(model: BaseModel) -> int:
    """Return the number of things that a body has: inputs, or items to add or change and ids to remove."""
    lists = (getattr(model, name, None) for name in _LISTS)
    return sum(len(value) if isinstance(value, list) else value is not None for value in lists)


def parse(model: type[Model], body: bytes) -> Model:
    """Return the body as a model; raise MalformedJson, MalformedBody or InvalidRequest."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        faults = _list_faults(error)
    if faults[0]["type"] == "json_invalid":
        _raise_malformed(model, body, faults[0]["msg"])
    _refuse_loose_numbers(body)
    raise _invalid(faults[0])


def json_pointer(location: tuple[int | str, ...]) -> str:
    """Return the JSON pointer for the location of a pydantic error, without the names of union branches."""
    tokens, is_branch = [], True  # a caller's key begins the location and follows each branch name
    for part in location:
        is_branch = part in UNION_TAGS and not is_branch
        if not is_branch:
            tokens.append("/" + str(part).replace("~", "~0").replace("/", "~1"))
    # A key may hold lone surrogates, which no UTF-8 answer can.
    return "".join(tokens)[:_MAX_POINTER_CHARS].encode("utf-8", "replace").decode("utf-8")


def _list_faults(error: ValidationError) -> list[ErrorDetails]:
    """Return the faults in the order of the schema.

    Raise InvalidRequest with their count if there are too many: to spell out 180,000 of them takes over a second.
    """
    if error.error_count() > _MAX_FAULTS:
        raise InvalidRequest(f"{error.error_count()} values are wrong or unknown.", pointer="") from None
    return error.errors(include_url=False, include_context=False, include_input=False)


def _invalid(error: ErrorDetails) -> InvalidRequest:
    return InvalidRequest(error["msg"] + ".", pointer=json_pointer(error["loc"]))


def _raise_malformed(model: type[BaseModel], body: bytes, reason: str) -> NoReturn:
    """Raise the Problem of a body that pydantic's parser cannot read.

    Pydantic's parser calls lone surrogates malformed, but the grammar of JSON allows them. They are wrong values here,
    with a pointer.
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
        faults = _list_faults(error)
        raise _invalid(next((fault for fault in faults if fault["type"] == "string_unicode"), faults[0])) from None
    raise malformed


def _refuse_loose_numbers(body: bytes) -> None:
    """Raise MalformedJson for NaN and Infinity. They are no JSON, but pydantic's parser reads them as numbers."""
    if b"NaN" not in body and b"Infinity" not in body:
        return
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedJson(f"Invalid JSON: {error.msg}.") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


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
