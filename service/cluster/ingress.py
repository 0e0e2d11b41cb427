"""The rules by which HAProxy admits requests: what a gateway has in hand, what waits, and what is refused.

Each kind of requests has its own lane, a backend with its own limit and its own queue. So texts delay neither health
checks nor explanations. A request waits in the queue of its lane for a bounded time. If that time is not enough,
HAProxy answers 429 by itself, and no gateway sees the request.

This module writes lines of HAProxy's configuration. `ray_haproxy` knows where they go in the text that Serve writes.
It imports nothing heavy, because HAProxy's launcher runs again at each reload.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

ARRIVAL_HEADER = "X-Heed-Arrival-Us"
"""The header in which HAProxy tells a gateway when the request was there, in microseconds since 1970."""

STOPPING = "proc.heed_stopping"
"""The variable of HAProxy that is set when the service stops: to NOT_READY_STAGE and then to REFUSING_STAGE."""

NOT_READY_STAGE, REFUSING_STAGE = 1, 2
"""In the first stage requests are answered, but `/readyz` is not ready. In the second every new request is refused."""

SAME_MACHINE_CONNECT_MS = 40
"""Time limit for a connection to a gateway of the same machine.

The kernel makes such a connection, so neither a busy gateway nor a busy HAProxy delays it. HAProxy waits that long
before it turns from a dead gateway to another one, and by default it waits a second.
"""

MAX_TARGET_BYTES = 8192
MAX_HEADER_BYTES = 32_768
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

_RETRY_AFTER_S = 2  # while no replica is up, for the next health check to find one
_MAX_RETRY_AFTER_S = 60
_CHECK_TIMEOUT_S = 3  # of a health check; a busy event loop takes tens of milliseconds
_OWN_BUFFER_BYTES = 1024  # HAProxy keeps them free in each buffer
_LIGHT_REQUESTS, _LIGHT_TIMEOUT_S = 32, 5
_EXPLAIN_REQUESTS = 8  # one that runs, the four that a gateway lets wait, and some that it refuses


@dataclass(frozen=True, slots=True)
class Refusal:
    """A problem that HAProxy answers by itself. `service.errors` has the same codes, statuses and titles."""

    status: int
    code: str
    title: str
    detail: str


BODY_TIMEOUT = Refusal(408, "body_timeout", "The body came too slowly", "The request did not come in time.")
TARGET_TOO_LONG = Refusal(
    414, "target_too_long", "Target too long", f"Path and query are longer than {MAX_TARGET_BYTES} bytes."
)
NOT_FOUND = Refusal(404, "not_found", "Not found", "No such route.")
OVERLOADED = Refusal(429, "overloaded", "Overloaded", "Too many requests wait. Try again after Retry-After.")
HEADERS_TOO_LARGE = Refusal(
    431, "headers_too_large", "Headers too large", f"The headers are larger than {MAX_HEADER_BYTES} bytes."
)
FAILED = Refusal(500, "internal_error", "Internal error", "The service failed.")
UNKNOWN_METHOD = Refusal(501, "unknown_method", "Unknown method", f"The methods are {', '.join(METHODS)}.")
LOST = Refusal(502, "replica_lost", "Replica lost", "The replica that handled this request went away. Try again.")
NOT_READY = Refusal(503, "not_ready", "Not ready", "No replica is ready. Try again.")
LATE = Refusal(504, "deadline_exceeded", "Deadline exceeded", "No replica answered in time.")
REFUSALS = (
    NOT_FOUND,
    BODY_TIMEOUT,
    TARGET_TOO_LONG,
    OVERLOADED,
    HEADERS_TOO_LARGE,
    FAILED,
    UNKNOWN_METHOD,
    LOST,
    NOT_READY,
    LATE,
)


@dataclass(frozen=True, slots=True)
class Lane:
    """A kind of requests that has its own queue. `condition` is HAProxy's, and empty for all other requests."""

    suffix: str
    condition: str
    gateway_requests: int  # that one gateway has in hand at once
    timeout_s: int | None = None  # of a gateway, if not that of all lanes


@dataclass(frozen=True, slots=True)
class Ingress:
    """The limits, and the lines of the configuration that they become."""

    gateway_requests: int = 256
    """Requests for texts that one gateway has in hand at once."""
    queue_s: float = 0.5
    request_timeout_s: int = 10
    """Time limit for headers, and for bodies that fit into a buffer."""
    connect_ms: int | None = None
    """Time limit for a connection to a gateway, or None for Serve's, which is also right between machines."""

    def lanes(self, buffer_bytes: int) -> tuple[Lane, ...]:
        """Return the lanes; a request takes the first whose condition holds.

        A body that HAProxy cannot hold in its buffer goes to a gateway while the client sends it. It has its own lane,
        so that slow clients never hold the places of others.
        """
        buffered = buffer_bytes - MAX_HEADER_BYTES - _OWN_BUFFER_BYTES
        large = f"{{ req.body_size gt {max(buffered, buffer_bytes // 2)} }}"
        return (
            Lane("-light", "{ method GET HEAD OPTIONS }", _LIGHT_REQUESTS, _LIGHT_TIMEOUT_S),
            Lane("-explain", "{ path_beg /v1/explain/ }", _EXPLAIN_REQUESTS),
            Lane("-large", large, max(4, self.gateway_requests // 4)),
            Lane("", "", self.gateway_requests),
        )

    def default_lines(self) -> str:
        """Return lines for the section `defaults`."""
        # HAProxy can send a request to a second replica only if it has buffered the whole request.
        lines = [
            "option http-buffer-request",
            "option forwardfor",  # gateways take the client's address from it, for fair shares
            f"timeout http-request {self.request_timeout_s}s",
            f"timeout check {_CHECK_TIMEOUT_S}s",
            *([f"timeout connect {self.connect_ms}ms"] if self.connect_ms else []),
        ]
        slow = replace(BODY_TIMEOUT, detail=f"The request was not complete within {self.request_timeout_s} s.")
        lines += [f"http-error {_answer(refusal)}" for refusal in (slow, FAILED, LOST, NOT_READY, LATE)]
        return _section_lines(lines)

    def frontend_lines(self, backends: Sequence[str]) -> str:
        """Return lines for the public port, which stand before all others; `backends` are those of replicas."""
        none_up = " ".join(f"{{ nbsrv({name}) eq 0 }}" for name in backends) or "TRUE"
        return _section_lines(
            [
                # Ray's HTTP server adds the request's ID to an answer that already has it.
                "http-response set-header X-Request-ID %[res.hdr(x-request-id)] if { res.hdr(x-request-id) -m found }",
                "http-request set-var(txn.arrival) date(0,us)",
                f"http-request set-header {ARRIVAL_HEADER} %[var(txn.arrival)]",
                f"http-request return {_answer(NOT_READY)} if {none_up}",
                f"http-request return {_answer(NOT_READY)} if {{ path /readyz }} {{ var({STOPPING}) -m found }}",
                # The connection is closed too, so that a client with another request opens one to another service.
                f"http-request return {_answer(NOT_READY)} hdr Connection close"
                f" if {{ var({STOPPING}) -m int {REFUSING_STAGE} }}",
                f"http-request return {_answer(UNKNOWN_METHOD)} if !{{ method {' '.join(METHODS)} }}",
                f"http-request return {_answer(TARGET_TOO_LONG)} if {{ url,length gt {MAX_TARGET_BYTES} }}",
                f"http-request return {_answer(HEADERS_TOO_LARGE)} if {{ req.hdrs,length gt {MAX_HEADER_BYTES} }}",
            ]
        )

    def not_found_line(self) -> str:
        """Return the line for requests that no backend takes."""
        return _section_lines([f"http-request return {_answer(NOT_FOUND)}"])

    def admission_lines(self, backend: str, lane: Lane, servers: Sequence[str]) -> str:
        """Return the lines that bound the queue of a lane's backend.

        The rate is that at which the servers take requests from the queue. HAProxy refuses a request at once if at
        that rate its turn would come too late. Any other waits for at most `queue_s`.
        """
        queue_ms = math.ceil(self.queue_s * 1000)
        queue = f"queue({backend})"
        retry = "hdr Retry-After %[var(txn.retry)]"
        cap, by_gateway = _MAX_RETRY_AFTER_S, "var(txn.by_gateway) -m found"
        # Serve's backend notices dead servers by the first connection that they refuse, and the others somewhat later.
        waited = f"date(0,us),sub(txn.arrival),div({queue_ms * 1000})"
        overloaded = waited if lane.suffix else f"nbsrv({backend})"
        in_hand = lane.gateway_requests * len(servers)
        full = f"{{ {queue} ge {in_hand} }} {{ {queue},sub(txn.soon) gt 0 }}"
        lines = [
            f"timeout queue {queue_ms}ms",
            *([f"timeout server {lane.timeout_s}s"] if lane.timeout_s else []),
            "http-request set-var(txn.rate) int(1)",
            *(f"http-request set-var(txn.rate) srv_sess_rate({backend}/{name}),add(txn.rate)" for name in servers),
            f"http-request set-var(txn.soon) var(txn.rate),mul({queue_ms}),div(1000)",
            f"http-request set-var(txn.retry) {queue},div(txn.rate),add(1)",
            f"http-request set-var(txn.retry) int({cap}) if {{ var(txn.retry) -m int gt {cap} }}",
            f"http-request return {_answer(OVERLOADED)} {retry} if {full}",
            # If the time in the queue runs out, HAProxy answers 503. The same status means that no replica is up.
            f"http-error {_overloaded_or_not_ready(overloaded)} {retry}",
            "http-response set-var(txn.by_gateway) bool(true)",
            f"http-after-response set-status 429 if {{ status 503 }} {{ {overloaded} gt 0 }} !{{ {by_gateway} }}",
            # A client that sends one request at a time then reaches a replica with warm caches. If no replica is
            # idle, the balancing decides.
            *(f"use-server {name} if {{ srv_conn({backend}/{name}) eq 0 }}" for name in servers),
        ]
        return _section_lines(lines)

    def lane_section(self, backend: str, lane: Lane, addresses: Mapping[str, str], inherited: str) -> str:
        """Return the backend of a lane beside the one of Serve; `addresses` are of the servers by name.

        The servers are up when those of Serve's backend are. `inherited` are lines of Serve's backend.
        """
        name = backend + lane.suffix
        servers = (
            f"server {server} {address} track {backend}/{server} maxconn {lane.gateway_requests}"
            for server, address in addresses.items()
        )
        admission = self.admission_lines(name, lane, list(addresses))
        return f"backend {name}\n{inherited}{admission}{_section_lines(servers)}"


def _section_lines(lines: Iterable[str]) -> str:
    return "".join(f"    {line}\n" for line in lines)


def _answer(refusal: Refusal) -> str:
    """Return the arguments by which HAProxy answers a problem."""
    retry = f" hdr Retry-After {_RETRY_AFTER_S}" if refusal is NOT_READY else ""
    return f"{_json_answer(refusal.status, asdict(refusal))}{retry}"


def _overloaded_or_not_ready(overloaded: str) -> str:
    """Return the arguments of HAProxy's answer 503, which is OVERLOADED if an expression is not 0, else NOT_READY."""
    fields = {
        name: f'%[{overloaded},bool,iif("{value}","{asdict(NOT_READY)[name]}")]'
        for name, value in asdict(OVERLOADED).items()
    }
    return _json_answer(503, fields)


def _json_answer(status: int, fields: Mapping[str, object]) -> str:
    body = (
        f'{{"type": "urn:heed:problem:{fields["code"]}", "title": "{fields["title"]}", "status": {fields["status"]}, '
        f'"detail": "{fields["detail"]}", "instance": "urn:heed:request:%[uuid()]", "code": "{fields["code"]}"}}'
    )
    return f"status {status} content-type application/problem+json lf-string '{body}'"
