"""Problems: every way in which a request can fail, as a tree of exceptions (RFC 9457).

The class of a `Problem` has its HTTP status and its stable code. Its detail is a sentence that is safe to show.
Any other exception is a fault of the service. The caller then gets an opaque 500 and a request id to quote.
The log gets the type and the trace of a fault, but never its message, which may quote text of a caller.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import structlog

_MAX_PLACES, _MAX_CAUSES = 12, 4
_log = structlog.get_logger(__name__)


class Problem(Exception):
    """The base of all problems, and the opaque problem itself.

    `pointer` is a JSON pointer into the caller's document. For the problem of an item, it starts at the item ("/text").
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, *, pointer: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.pointer = pointer
        self.headers = dict(headers or {})

    def __reduce__(self) -> tuple[Callable[..., Problem], tuple[object, ...]]:
        """Pickle all fields, because a problem crosses between processes; exceptions pickle only their `args`."""
        return _restore, (type(self), self.detail, self.pointer, self.headers)

    def with_pointer(self, pointer: str) -> Problem:
        """Return the same problem with another pointer."""
        return _restore(type(self), self.detail, pointer, self.headers)


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


class CatalogueFull(Problem):
    status, code, title = 413, "catalogue_full", "Catalogue full"


class ExplanationTooLarge(Problem):
    status, code, title = 413, "explanation_too_large", "Explanation too large"


class TargetTooLong(Problem):
    """The path and query are too long. HAProxy answers it, as it does the next two."""

    status, code, title = 414, "target_too_long", "Target too long"


class HeadersTooLarge(Problem):
    status, code, title = 431, "headers_too_large", "Headers too large"


class UnknownMethod(Problem):
    status, code, title = 501, "unknown_method", "Unknown method"


class UnsupportedMediaType(Problem):
    status, code, title = 415, "unsupported_media_type", "Unsupported media type"


class InvalidRequest(Problem):
    status, code, title = 422, "invalid_request", "Invalid request"


class EmptyText(Problem):
    status, code, title = 422, "empty_text", "Empty text"


class EntityNotFound(Problem):
    status, code, title = 422, "entity_not_found", "Entity not found"


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
    """A problem that time solves; `Retry-After` says when to come back, in whole seconds."""

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


def _restore(kind: type[Problem], detail: str, pointer: str | None, headers: Mapping[str, str]) -> Problem:
    problem = kind.__new__(kind)
    Problem.__init__(problem, detail, pointer=pointer, headers=headers)
    return problem


def describe_fault(error: BaseException) -> dict[str, Any]:
    """Return the fields of a log record for a fault: its type, the places of its trace, and the faults before it.

    Messages are left out, because they may quote a caller's text.
    """
    fields: dict[str, Any] = {"error": type(error).__qualname__, "trace": _places(error)[-_MAX_PLACES:]}
    causes: list[str] = []
    seen = {id(error)}
    while (cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        if id(cause) in seen or len(causes) == _MAX_CAUSES:
            break
        seen.add(id(cause))
        causes.append(" at ".join([type(cause).__qualname__, *_places(cause)[-1:]]))
        error = cause
    return fields | ({"caused_by": causes} if causes else {})


def _places(error: BaseException) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]


def from_unknown(error: BaseException, **fields: object) -> Problem:
    """Return the opaque problem for a fault of the service; log the fault's type and trace, with more fields."""
    _log.error("unhandled", **describe_fault(error), **fields)
    return Problem("The service failed; quote the X-Request-ID of this answer when you report it.")
