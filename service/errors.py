"""Everything that can go wrong for a caller: one tree, one handler, one shape (RFC 9457).

A `Problem` carries the HTTP status and a stable code as its type, and a sentence that is safe to show as its detail.
Anything that is not a `Problem` is a fault of ours: the caller sees an opaque 500 and the id to quote, and the log
gets the type and the place, never the message, because the message of a foreign exception may quote the caller's text.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping
from typing import ClassVar

import structlog

_log = structlog.get_logger(__name__)


class Problem(Exception):
    """`pointer` is a JSON pointer into the caller's document; of an item's problem, into the item ("/text")."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, *, pointer: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.pointer = pointer
        self.headers = dict(headers or {})

    def __reduce__(self) -> tuple[Callable[..., Problem], tuple[object, ...]]:
        """A problem crosses between processes; an exception's own way would call `__init__` with the detail alone."""
        return _restored, (type(self), self.detail, self.pointer, self.headers)


class MalformedJson(Problem):
    status, code, title = 400, "malformed_json", "Malformed JSON"


class MalformedBody(Problem):
    status, code, title = 400, "malformed_body", "Malformed body"


class NotFound(Problem):
    status, code, title = 404, "not_found", "Not found"


class MethodNotAllowed(Problem):
    status, code, title = 405, "method_not_allowed", "Method not allowed"


class CatalogueOutdated(Problem):
    status, code, title = 409, "catalogue_outdated", "Catalogue made by another model"


class CatalogueReadOnly(Problem):
    status, code, title = 409, "catalogue_read_only", "Catalogue cannot be edited"


class BodyTimeout(Problem):
    status, code, title = 408, "body_timeout", "The body came too slowly"


class BodyTooLarge(Problem):
    status, code, title = 413, "body_too_large", "Body too large"


class ExplanationTooLarge(Problem):
    status, code, title = 413, "explanation_too_large", "Explanation too large"


class UnsupportedMediaType(Problem):
    status, code, title = 415, "unsupported_media_type", "Unsupported media type"


class InvalidRequest(Problem):
    status, code, title = 422, "invalid_request", "Invalid request"


class EmptyText(Problem):
    status, code, title = 422, "empty_text", "Empty text"


class TextTooLong(Problem):
    status, code, title = 422, "text_too_long", "Text too long"


class UnknownItem(Problem):
    status, code, title = 422, "unknown_item", "Unknown item"


class InferenceFailed(Problem):
    status, code, title = 500, "inference_failed", "Inference failed"


class ReplicaLost(Problem):
    status, code, title = 502, "replica_lost", "Replica lost"


class DeadlineExceeded(Problem):
    status, code, title = 504, "deadline_exceeded", "Deadline exceeded"


class DiskFull(Problem):
    status, code, title = 507, "disk_full", "Disk full"


class _Retryable(Problem):
    def __init__(self, detail: str, *, retry_after_s: float) -> None:
        super().__init__(detail, headers={"Retry-After": str(max(1, math.ceil(retry_after_s)))})


class Overloaded(_Retryable):
    status, code, title = 429, "overloaded", "Overloaded"


class NotReady(_Retryable):
    status, code, title = 503, "not_ready", "Not ready"


class CatalogueBusy(_Retryable):
    status, code, title = 503, "catalogue_busy", "Catalogue busy"


class CatalogueUnusable(_Retryable):
    status, code, title = 503, "catalogue_unusable", "Catalogue cannot be used"


def _restored(kind: type[Problem], detail: str, pointer: str | None, headers: Mapping[str, str]) -> Problem:
    problem = kind.__new__(kind)
    Problem.__init__(problem, detail, pointer=pointer, headers=headers)
    return problem


def from_unknown(error: BaseException) -> Problem:
    """The opaque problem for a fault of ours; logs its type and place."""
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    _log.error("unhandled", error=type(error).__name__, places=places[-8:])
    return Problem("The service failed; quote the X-Request-ID of this answer when you report it.")
