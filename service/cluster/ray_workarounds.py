"""All uses of Ray, and changes to it, beyond Ray's public interface.

Each function explains why it is needed, which public setting is missing, and what happens without it. First it checks
that Ray still has what it needs. If not, it raises RayChangedError and the service does not start. After an upgrade of
Ray, `tests/system/test_ray_workarounds.py` and `test_ray_haproxy_config.py` show which functions to review. Ray's
undocumented variables are in tables in `local.py`, and the same tests look for them in Ray.

This module imports nothing heavy, and Ray only inside functions: HAProxy's launcher loads it at each reload.
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
"""The version that this module was written for and tested with."""

REPLICA_SERVER = "SERVE_REPLICA"
"""The prefix of the names that Serve gives to replicas in HAProxy's configuration.

It is used to count, in HAProxy's statistics, the replicas that get requests. Serve has no public interface for that:
its status calls a replica running before HAProxy knows of it. Without it, `heed serve` prints "Ready" too early.
"""

_HAPROXY = "rewrite_haproxy_config"
_PUBLIC_FRONTEND = "frontend http_frontend"
_SECTIONS_WITH_PORTS = {_PUBLIC_FRONTEND, "frontend grpc_frontend", "frontend prometheus", "listen stats"}
"""The sections of Serve's configuration that open a port. gRPC is off unless an operator turns it on."""

_TEMPLATE = (
    "frontend prometheus\n    bind :",
    f"{_PUBLIC_FRONTEND}\n    bind ",
    "listen stats\n  bind *:",
    "\ndefaults\n",
    "\n    log {{ config.log_target }} local0 ",
    "\n    stats socket {{ config.socket_path }} mode 666 level admin ",
    "%}timeout http-request {{ config.timeout_http_request_s }}s{%",
    "\n    errorfile 503 ",
    "\nbackend {{ backend.name",
    "\n    server {{ server.name }} {{ server.host }}:{{ server.port }} check",
)
"""Text in Serve's template that `rewrite_haproxy_config` changes or relies on."""


class RayChangedError(RuntimeError):
    """This Ray lacks something that a workaround needs. The message is one line that names both."""

    def __init__(self, workaround: str, missing: str) -> None:
        super().__init__(workaround, missing)  # for pickle, because replicas raise it too

    def __str__(self) -> str:
        from importlib.metadata import version

        workaround, missing = self.args
        return (
            f"Ray {version('ray')} is not as Heed expects: {missing}. Install ray[serve]=={RAY_VERSION}, or adapt"
            f" `{workaround}` in service/cluster/ray_workarounds.py"
        )


def check_ray() -> None:
    """Raise RayChangedError if this Ray lacks anything that the workarounds in later processes need.

    Without this, a replica or HAProxy would fail, far from here and after a minute of retries.
    """
    _check_haproxy()
    _replica_module()
    _check_routers()


def bind_to_loopback() -> None:
    """Bind every port of the cluster that this process starts to 127.0.0.1.

    `ray.init(_node_ip_address="127.0.0.1")` does not do that: Ray replaces the address by the network card's. On macOS
    and Windows Ray stays on loopback, and this function turns that behaviour on. Without it, Ray's ports are open to
    the network, and they run any code for whoever has the token.
    """
    workaround = "bind_to_loopback"
    constants = _import_module("ray._private.ray_constants", workaround)
    services = _import_module("ray._private.services", workaround)
    switch = getattr(constants, "ENABLE_RAY_CLUSTER", None)
    _require(isinstance(switch, bool), workaround, "ray_constants.ENABLE_RAY_CLUSTER is not a boolean")
    constants.ENABLE_RAY_CLUSTER = False
    address = services.get_node_ip_address()
    _require(_is_loopback(address), workaround, f"with ENABLE_RAY_CLUSTER off a node's address is {address}")


def disable_dashboard() -> None:
    """Keep Ray from starting its dashboard, its autoscaler and the web server of its agent, which serve no request.

    `ray.init(include_dashboard=False)` still starts the dashboard's process, with fewer modules. The autoscaler has no
    setting. Only a missing dependency of the dashboard keeps the agent small. Without this, the start takes about 4 s
    longer and the service needs 350 MB more.
    """
    workaround = "disable_dashboard"
    node: Any = getattr(_import_module("ray._private.node", workaround), "Node", None)
    utils = _import_module("ray._private.utils", workaround)
    services = _import_module("ray._private.services", workaround)
    _require_arguments(node, "start_monitor", ["self"], workaround)
    _require_arguments(node, "start_api_server", ["self", "include_dashboard", "raise_on_failure"], workaround)
    _require_arguments(utils, "get_dashboard_dependency_error", [], workaround)
    _require_use(services, "start_raylet", "get_dashboard_dependency_error", workaround)
    node.start_monitor = node.start_api_server = lambda *_, **__: None
    utils.get_dashboard_dependency_error = lambda: ImportError("not wanted")


def close_handle_port() -> None:
    """Bind this replica's port for calls between deployments to loopback if its node is on loopback.

    Serve binds that port to `[::]` in every replica, used or not, and has no setting for it. Without this, anybody who
    reaches the machine can call a replica, which unpickles its input.
    """
    import ray

    if not _is_loopback(ray.util.get_node_ip_address()):
        return
    replica = _replica_module()
    bind = replica.add_port_to_grpc_server

    def bind_to_loopback_alone(server: Any, address: str) -> Any:
        known = address.startswith(("[::]:", "127.0.0.1:"))
        _require(known, "close_handle_port", f"a replica binds its port to {address}")
        return bind(server, address.replace("[::]", "127.0.0.1"))

    replica.add_port_to_grpc_server = bind_to_loopback_alone


def replica_counter(handle: Any) -> Callable[[], int]:
    """Return a function that counts the replicas to which the handle's router would send a call.

    Serve notifies its routers immediately when a replica is lost or added. Its public status calls the controller, in
    another process, and lags behind. Without this, a gateway would send calls to lost replicas, and could not answer
    "not ready" before a call has failed.
    """
    _check_routers()

    def count() -> int:
        router = handle._router and handle._router._asyncio_router._request_router
        return len(router.curr_replicas) if router else 0

    return count


def rewrite_haproxy_config(config: str, defaults: str, host: str | None) -> str:
    """Return Serve's configuration without open statistics ports and with our limits and errors.

    `defaults` are lines for the section of that name. The public port listens on `host`, or where Serve put it if
    `host` is None. Replicas stay where Serve put them. Rewriting a second time changes nothing.

    Serve has no settings for its two statistics ports, the time limits of slow headers and the text of errors. Without
    this, those ports are open to the network and every user can use the admin socket. Slow requests occupy HAProxy,
    errors are plain text, and answers carry their request's ID twice.
    """
    config = _remove_section(_remove_section(config, "frontend prometheus"), "listen stats")
    # A log target that is an address opens a UDP socket on all interfaces, for a syslog that does not exist.
    config = _remove_lines(config, r"log \S+:\d+ ")
    config = config.replace(" mode 666 level admin ", " mode 600 level admin ")
    config = _remove_lines(
        config, r"(?:errorfile|http-error|timeout http-request|option http-buffer-request|option forwardfor)\b"
    )
    config = config.replace("\ndefaults\n", f"\ndefaults\n{defaults}", 1)
    public = rf"^{_PUBLIC_FRONTEND}\n    bind "
    address = "" if host is None else f"[{host}]" if ":" in host else host
    if address:
        config = re.sub(rf"({public})\S+(?=:\d+$)", lambda match: match[1] + address, config, flags=re.M)
    # Ray's HTTP server adds the request's ID to an answer that already has it.
    request_id = (
        "    http-response set-header X-Request-ID %[res.hdr(x-request-id)] if { res.hdr(x-request-id) -m found }\n"
    )
    if request_id not in config:
        config = re.sub(rf"{public}.*\n", lambda match: match[0] + request_id, config, flags=re.M)
    config = re.sub(r"^backend (\S+)\n(?:[ \t]+.*\n)*", _prefer_first_idle, config, flags=re.M)
    _check_rewritten(config, defaults, address, request_id)
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
    unknown = _sections_with_ports(config) - _SECTIONS_WITH_PORTS
    _require(not unknown, _HAPROXY, f"Serve's configuration of HAProxy opens a port in {', '.join(sorted(unknown))}")
    names = _import_module("ray.serve._private.common", "REPLICA_SERVER")
    prefix = str(getattr(names, "REPLICA_ID_FULL_ID_STR_PREFIX", ""))
    _require(prefix.startswith(REPLICA_SERVER), "REPLICA_SERVER", f"names of replicas begin with {prefix!r}")


def _replica_module() -> Any:
    """Return the module whose function `close_handle_port` replaces."""
    workaround = "close_handle_port"
    replica = _import_module("ray.serve._private.replica", workaround)
    _require_arguments(replica, "add_port_to_grpc_server", ["server", "address"], workaround)
    _require_use(getattr(replica, "Replica", None), "_on_initialized", "add_port_to_grpc_server", workaround)
    return replica


def _check_routers() -> None:
    workaround = "replica_counter"
    handles = _import_module("ray.serve.handle", workaround)
    routers = _import_module("ray.serve._private.router", workaround)
    request_routers = _import_module("ray.serve._private.request_router.request_router", workaround)
    for owner, name, attribute in (
        (handles, "_DeploymentHandleBase", "_router"),
        (routers, "SingletonThreadRouter", "_asyncio_router"),
        (routers, "CurrentLoopRouter", "_asyncio_router"),
        (routers, "AsyncioRouter", "_request_router"),
    ):
        _require_use(getattr(owner, name, None), "__init__", attribute, workaround)
    known = isinstance(getattr(getattr(request_routers, "RequestRouter", None), "curr_replicas", None), property)
    _require(known, workaround, "RequestRouter.curr_replicas is not a property")


def _check_rewritten(config: str, defaults: str, address: str, request_id: str) -> None:
    open_sections = _sections_with_ports(config) - {_PUBLIC_FRONTEND, "frontend grpc_frontend"}
    _require(not open_sections, _HAPROXY, f"HAProxy would open a port in {', '.join(sorted(open_sections))}")
    _require(f"{_PUBLIC_FRONTEND}\n    bind {address}" in config, _HAPROXY, "the public port of HAProxy is missing")
    sockets = re.findall(r"^[ \t]+stats socket .*$", config, flags=re.M)
    _require(
        all(" mode 600 level admin " in line for line in sockets), _HAPROXY, "any user can use HAProxy's admin socket"
    )
    _require(f"\ndefaults\n{defaults}" in config, _HAPROXY, "HAProxy's section `defaults` is missing")
    _require(request_id in config, _HAPROXY, "the section for X-Request-ID is missing")


def _prefer_first_idle(backend: re.Match[str]) -> str:
    """Return the backend's section with rules that send a request to the first idle replica.

    A client that sends one request at a time then reaches a replica with warm caches. If no replica is idle, Serve's
    balancing decides.
    """
    section = _remove_lines(backend[0], r"use-server \S+ if { srv_conn\(")
    rule = f"    use-server {{name}} if {{{{ srv_conn({backend[1]}/{{name}}) eq 0 }}}}\n"
    servers = re.findall(r"^[ \t]+server (\S+) \S+ check(?!.* backup)", section, flags=re.M)
    return section + "".join(rule.format(name=name) for name in servers)


def _sections_with_ports(config: str) -> set[str]:
    """Return the title lines of the sections with a `bind`."""
    sections = re.findall(r"^((?:frontend|listen|backend) .+)\n((?:[ \t{].*\n|\n)*)", config, flags=re.M)
    return {title for title, lines in sections if re.search(r"^[ \t]+bind ", lines, flags=re.M)}


def _remove_section(config: str, title: str) -> str:
    """Return the configuration without a section: its title line and the indented lines below it."""
    return re.sub(rf"^{re.escape(title)}\n(?:[ \t]+.*\n|\n)*", "", config, flags=re.M)


def _remove_lines(config: str, beginning: str) -> str:
    return re.sub(rf"^[ \t]+{beginning}.*\n", "", config, flags=re.M)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _require(holds: bool, workaround: str, otherwise: str) -> None:
    if not holds:
        raise RayChangedError(workaround, otherwise)


def _import_module(name: str, workaround: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise RayChangedError(workaround, f"there is no module {name}") from None


def _require_arguments(owner: Any, name: str, arguments: list[str], workaround: str) -> None:
    code = getattr(getattr(owner, name, None), "__code__", None)
    actual = None if code is None else list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    _require(actual == arguments, workaround, f"{name} takes {actual} and not {arguments}")


def _require_use(owner: Any, function: str, name: str, workaround: str) -> None:
    """Raise RayChangedError unless the function's body contains the name of the patched function or the attribute."""
    code = getattr(getattr(owner, function, None), "__code__", None)
    path = f"{getattr(owner, '__name__', owner)}.{function}"
    _require(code is not None and name in code.co_names, workaround, f"{path} does not use {name}")
