"""Everything that Heed takes from Ray, or does to it, beyond Ray's public interface.

Each function says why it is needed, which public setting is missing, and what happens without it. Each one looks
first whether Ray still has what it needs and raises RayChangedError if not, so that the service does not start. After
an upgrade of Ray, `tests/cluster/test_ray_workarounds.py` says which of them to read again. The variables of Ray that
no documentation promises are in `local.py`, in tables; the same tests look for them in Ray.

Imports nothing heavy, and Ray only inside functions: HAProxy's launcher loads this module at each reload.
"""

from __future__ import annotations

import importlib
import importlib.util
import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

RAY_VERSION = "2.60.0"
"""The version that all of this was written for and tested with."""

REPLICA_SERVER = "SERVE_REPLICA"
"""With it begin the names that Serve gives to replicas in HAProxy's configuration.

HAProxy's statistics then say how many replicas get requests. Serve has no public word for that: its status calls a
replica running before HAProxy knows of it. Without it, `heed serve` says "Ready" too early.
"""

_HAPROXY = "rewrite_haproxy_config"
_PUBLIC = "frontend http_frontend"
_PORTS = {_PUBLIC, "frontend grpc_frontend", "frontend prometheus", "listen stats"}
"""The sections of Serve's configuration that open a port; gRPC is off unless an operator turns it on."""

_TEMPLATE = (
    "frontend prometheus\n    bind :",
    f"{_PUBLIC}\n    bind ",
    "listen stats\n  bind *:",
    "\ndefaults\n",
    "\n    log {{ config.log_target }} local0 ",
    "\n    stats socket {{ config.socket_path }} mode 666 level admin ",
    "%}timeout http-request {{ config.timeout_http_request_s }}s{%",
    "\n    errorfile 503 ",
    "\nbackend {{ backend.name",
    "\n    server {{ server.name }} {{ server.host }}:{{ server.port }} check",
)
"""Text of Serve's template that `rewrite_haproxy_config` changes or builds on."""


class RayChangedError(RuntimeError):
    """This Ray lacks something that a workaround needs; the message is one line that names both."""

    def __init__(self, workaround: str, missing: str) -> None:
        super().__init__(workaround, missing)  # so that it can be pickled: replicas raise it too

    def __str__(self) -> str:
        from importlib.metadata import version

        workaround, missing = self.args
        return (
            f"Ray {version('ray')} is not as Heed expects it: {missing}. Install ray[serve]=={RAY_VERSION}, or mend"
            f" `{workaround}` in service/cluster/ray_workarounds.py"
        )


def check_ray() -> None:
    """Look for what workarounds in processes to come will need, so that the service is refused before they start.

    Raises RayChangedError. Without this, a replica or HAProxy would fail, far from here and after a minute of tries.
    """
    _check_haproxy()
    _replicas()
    _check_routers()


def bind_to_loopback() -> None:
    """Make every port of the cluster that this process starts bind to 127.0.0.1.

    `ray.init(_node_ip_address="127.0.0.1")` is no such setting: Ray replaces that address by the network card's. On
    macOS and Windows Ray keeps to loopback, and this turns that behaviour on. Without it, the ports of Ray are open to
    the network. They run any code for whoever has the token.
    """
    workaround = "bind_to_loopback"
    constants = _module("ray._private.ray_constants", workaround)
    services = _module("ray._private.services", workaround)
    switch = getattr(constants, "ENABLE_RAY_CLUSTER", None)
    _require(isinstance(switch, bool), workaround, "ray_constants.ENABLE_RAY_CLUSTER is no switch")
    constants.ENABLE_RAY_CLUSTER = False
    address = services.get_node_ip_address()
    _require(_is_loopback(address), workaround, f"with ENABLE_RAY_CLUSTER off a node's address is {address}")


def without_dashboard() -> None:
    """Keep Ray from starting its dashboard, its autoscaler and the web server of its agent, which answer no request.

    `ray.init(include_dashboard=False)` starts the process of the dashboard all the same, with fewer modules, and the
    autoscaler has no setting. Only a missing dependency of the dashboard keeps the agent small. Without this, a start
    takes about 4 s longer and the service 350 MB more.
    """
    workaround = "without_dashboard"
    node: Any = getattr(_module("ray._private.node", workaround), "Node", None)
    utils = _module("ray._private.utils", workaround)
    services = _module("ray._private.services", workaround)
    _require_arguments(node, "start_monitor", ["self"], workaround)
    _require_arguments(node, "start_api_server", ["self", "include_dashboard", "raise_on_failure"], workaround)
    _require_arguments(utils, "get_dashboard_dependency_error", [], workaround)
    _require_use(services, "start_raylet", "get_dashboard_dependency_error", workaround)
    node.start_monitor = node.start_api_server = lambda *_, **__: None
    utils.get_dashboard_dependency_error = lambda: ImportError("not wanted")


def close_handle_port() -> None:
    """Keep this replica's port for calls between deployments on loopback when its node is on loopback.

    Serve binds that port to `[::]` in every replica, used or not, and has no setting for it. Without this, whoever
    reaches the machine can call a replica, which unpickles what it gets.
    """
    import ray

    if not _is_loopback(ray.util.get_node_ip_address()):
        return
    replica = _replicas()
    bind = replica.add_port_to_grpc_server

    def bind_to_loopback_alone(server: Any, address: str) -> Any:
        known = address.startswith(("[::]:", "127.0.0.1:"))
        _require(known, "close_handle_port", f"a replica binds its port to {address}")
        return bind(server, address.replace("[::]", "127.0.0.1"))

    replica.add_port_to_grpc_server = bind_to_loopback_alone


def replica_counter(handle: Any) -> Callable[[], int]:
    """Return a function that counts the replicas to which the handle's router would send a call.

    Serve tells its routers of a lost or a new replica at once. Its public status asks the controller, which is a call
    to another process and takes longer to notice. Without this, a gateway would send to replicas that are gone, and
    could not say "not ready" before a call has failed.
    """
    _check_routers()

    def running() -> int:
        router = handle._router and handle._router._asyncio_router._request_router
        return len(router.curr_replicas) if router else 0

    return running


def rewrite_haproxy_config(config: str, ours: str, host: str | None) -> str:
    """Return Serve's configuration without open statistics ports and with `ours` as its limits and errors.

    `ours` are lines for the section `defaults`. `host` is where the public port listens; None leaves that as Serve
    wrote it, and replicas stay where Serve put them. Rewriting twice changes nothing more.

    Serve's settings have no switch for its two statistics ports, for time limits of slow headers and for the text of
    errors. Without this, those ports are open to the world and the admin socket is there for every user. Slow requests
    are held, errors are plain text, and answers carry their request's id twice.
    """
    config = _without_section(_without_section(config, "frontend prometheus"), "listen stats")
    # A log target that is an address opens a UDP socket on all interfaces, to send to a syslog that is not there.
    config = _without_lines(config, r"log \S+:\d+ ")
    config = config.replace(" mode 666 level admin ", " mode 600 level admin ")
    config = _without_lines(config, r"(?:errorfile|http-error|timeout http-request|option http-buffer-request)\b")
    config = config.replace("\ndefaults\n", f"\ndefaults\n{ours}", 1)
    public = rf"^{_PUBLIC}\n    bind "
    address = "" if host is None else f"[{host}]" if ":" in host else host
    if address:
        config = re.sub(rf"({public})\S+(?=:\d+$)", lambda found: found[1] + address, config, flags=re.M)
    # Ray's HTTP server adds the request's id to an answer that has it already.
    once = "    http-response set-header X-Request-ID %[res.hdr(x-request-id)] if { res.hdr(x-request-id) -m found }\n"
    if once not in config:
        config = re.sub(rf"{public}.*\n", lambda found: found[0] + once, config, flags=re.M)
    config = re.sub(r"^backend (\S+)\n(?:[ \t]+.*\n)*", _first_idle_first, config, flags=re.M)
    _check_rewritten(config, ours, address, once)
    return config


def _check_haproxy() -> None:
    ray = importlib.util.find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    path = Path(ray.origin).parent / "serve" / "_private" / "haproxy_templates.py"
    template = path.read_text(encoding="utf-8") if path.is_file() else ""
    for expected in _TEMPLATE:
        _require(expected in template, _HAPROXY, f"Serve's template for HAProxy has no {expected.strip()!r}")
    _, _, config = template.partition('HAPROXY_CONFIG_TEMPLATE = """')
    more = _opening_ports(config) - _PORTS
    _require(not more, _HAPROXY, f"Serve's configuration of HAProxy opens a port in {', '.join(sorted(more))}")
    names = _module("ray.serve._private.common", "REPLICA_SERVER")
    prefix = str(getattr(names, "REPLICA_ID_FULL_ID_STR_PREFIX", ""))
    _require(prefix.startswith(REPLICA_SERVER), "REPLICA_SERVER", f"names of replicas begin with {prefix!r}")


def _replicas() -> Any:
    """The module whose function `close_handle_port` replaces."""
    workaround = "close_handle_port"
    replica = _module("ray.serve._private.replica", workaround)
    _require_arguments(replica, "add_port_to_grpc_server", ["server", "address"], workaround)
    _require_use(getattr(replica, "Replica", None), "_on_initialized", "add_port_to_grpc_server", workaround)
    return replica


def _check_routers() -> None:
    workaround = "replica_counter"
    handles = _module("ray.serve.handle", workaround)
    routers = _module("ray.serve._private.router", workaround)
    request_routers = _module("ray.serve._private.request_router.request_router", workaround)
    for owner, name, attribute in (
        (handles, "_DeploymentHandleBase", "_router"),
        (routers, "SingletonThreadRouter", "_asyncio_router"),
        (routers, "CurrentLoopRouter", "_asyncio_router"),
        (routers, "AsyncioRouter", "_request_router"),
    ):
        _require_use(getattr(owner, name, None), "__init__", attribute, workaround)
    known = isinstance(getattr(getattr(request_routers, "RequestRouter", None), "curr_replicas", None), property)
    _require(known, workaround, "RequestRouter.curr_replicas is no property")


def _check_rewritten(config: str, ours: str, address: str, once: str) -> None:
    left = _opening_ports(config) - {_PUBLIC, "frontend grpc_frontend"}
    _require(not left, _HAPROXY, f"HAProxy would open a port in {', '.join(sorted(left))}")
    _require(f"{_PUBLIC}\n    bind {address}" in config, _HAPROXY, "the public port of HAProxy is not found")
    sockets = re.findall(r"^[ \t]+stats socket .*$", config, flags=re.M)
    _require(
        all(" mode 600 level admin " in line for line in sockets), _HAPROXY, "any user can use HAProxy's admin socket"
    )
    _require(f"\ndefaults\n{ours}" in config, _HAPROXY, "HAProxy's section `defaults` is not found")
    _require(once in config, _HAPROXY, "the place for X-Request-ID is not found")


def _first_idle_first(backend: re.Match[str]) -> str:
    """Of several idle replicas the first gets a request, and not the one that has been idle longest.

    Who asks one thing at a time then meets a replica with warm caches; while none is idle, Serve's balance decides.
    """
    section = _without_lines(backend[0], r"use-server \S+ if { srv_conn\(")
    rule = f"    use-server {{name}} if {{{{ srv_conn({backend[1]}/{{name}}) eq 0 }}}}\n"
    servers = re.findall(r"^[ \t]+server (\S+) \S+ check(?!.* backup)", section, flags=re.M)
    return section + "".join(rule.format(name=name) for name in servers)


def _opening_ports(config: str) -> set[str]:
    """Title lines of the sections with a `bind`."""
    sections = re.findall(r"^((?:frontend|listen|backend) .+)\n((?:[ \t{].*\n|\n)*)", config, flags=re.M)
    return {title for title, lines in sections if re.search(r"^[ \t]+bind ", lines, flags=re.M)}


def _without_section(config: str, title: str) -> str:
    """A section is its title line and the indented lines below it."""
    return re.sub(rf"^{re.escape(title)}\n(?:[ \t]+.*\n|\n)*", "", config, flags=re.M)


def _without_lines(config: str, beginning: str) -> str:
    return re.sub(rf"^[ \t]+{beginning}.*\n", "", config, flags=re.M)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _require(holds: bool, workaround: str, otherwise: str) -> None:
    if not holds:
        raise RayChangedError(workaround, otherwise)


def _module(name: str, workaround: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise RayChangedError(workaround, f"there is no module {name}") from None


def _require_arguments(owner: Any, name: str, arguments: list[str], workaround: str) -> None:
    code = getattr(getattr(owner, name, None), "__code__", None)
    found = None if code is None else list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    _require(found == arguments, workaround, f"{name} takes {found} and not {arguments}")


def _require_use(owner: Any, function: str, name: str, workaround: str) -> None:
    """Require that the function's body names what is patched, or the attribute that is read."""
    code = getattr(getattr(owner, function, None), "__code__", None)
    place = f"{getattr(owner, '__name__', owner)}.{function}"
    _require(code is not None and name in code.co_names, workaround, f"{place} does not use {name}")
