"""All uses of Ray, and changes to it, beyond Ray's public interface.

Each function explains why it is needed, which public setting is missing, and what happens without it. First it checks
that Ray still has what it needs. If not, it raises RayChangedError and the service does not start. After an upgrade of
Ray, `tests/system/test_ray_workarounds.py` and `test_ray_haproxy_config.py` show which functions to review. Ray's
undocumented variables are in tables in `local.py`, and the same tests look for them in Ray. `ray_haproxy` changes the
configuration that Serve writes for HAProxy.

This module imports nothing heavy, and Ray only inside functions: HAProxy's launcher loads it at each reload.
"""

from __future__ import annotations

import importlib
import ipaddress
from collections.abc import Callable
from typing import Any

RAY_VERSION = "2.60.0"
"""The version that this module was written for and tested with."""


class RayChangedError(RuntimeError):
    """This Ray lacks something that a workaround needs. The message is one line that names both."""

    def __init__(self, workaround: str, missing: str) -> None:
        super().__init__(workaround, missing)  # for pickle, because replicas raise it too

    def __str__(self) -> str:
        from importlib.metadata import version

        workaround, missing = self.args
        return (
            f"Ray {version('ray')} is not as Heed expects: {missing}. Install ray[serve]=={RAY_VERSION}, or adapt"
            f" `{workaround}` in service/cluster"
        )


def check_ray() -> None:
    """Raise RayChangedError if this Ray lacks anything that the workarounds in later processes need.

    Without this, a replica or HAProxy would fail, far from here and after a minute of retries.
    """
    _replica_module()
    _check_routers()


def bind_to_loopback() -> None:
    """Bind every port of the cluster that this process starts to 127.0.0.1.

    `ray.init(_node_ip_address="127.0.0.1")` does not do that: Ray replaces the address by the network card's. On macOS
    and Windows Ray stays on loopback, and this function turns that behaviour on. Without it, Ray's ports are open to
    the network, and they run any code for whoever has the token.
    """
    workaround = "bind_to_loopback"
    constants = import_module("ray._private.ray_constants", workaround)
    services = import_module("ray._private.services", workaround)
    switch = getattr(constants, "ENABLE_RAY_CLUSTER", None)
    require(isinstance(switch, bool), workaround, "ray_constants.ENABLE_RAY_CLUSTER is not a boolean")
    constants.ENABLE_RAY_CLUSTER = False
    address = services.get_node_ip_address()
    require(_is_loopback(address), workaround, f"with ENABLE_RAY_CLUSTER off a node's address is {address}")


def disable_dashboard() -> None:
    """Keep Ray from starting its dashboard, its autoscaler and the web server of its agent, which serve no request.

    `ray.init(include_dashboard=False)` still starts the dashboard's process, with fewer modules. The autoscaler has no
    setting. Only a missing dependency of the dashboard keeps the agent small. Without this, the start takes about 4 s
    longer and the service needs 350 MB more.
    """
    workaround = "disable_dashboard"
    node: Any = getattr(import_module("ray._private.node", workaround), "Node", None)
    utils = import_module("ray._private.utils", workaround)
    services = import_module("ray._private.services", workaround)
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
        require(known, "close_handle_port", f"a replica binds its port to {address}")
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


def _replica_module() -> Any:
    """Return the module whose function `close_handle_port` replaces."""
    workaround = "close_handle_port"
    replica = import_module("ray.serve._private.replica", workaround)
    _require_arguments(replica, "add_port_to_grpc_server", ["server", "address"], workaround)
    _require_use(getattr(replica, "Replica", None), "_on_initialized", "add_port_to_grpc_server", workaround)
    return replica


def _check_routers() -> None:
    workaround = "replica_counter"
    handles = import_module("ray.serve.handle", workaround)
    routers = import_module("ray.serve._private.router", workaround)
    request_routers = import_module("ray.serve._private.request_router.request_router", workaround)
    for owner, name, attribute in (
        (handles, "_DeploymentHandleBase", "_router"),
        (routers, "SingletonThreadRouter", "_asyncio_router"),
        (routers, "CurrentLoopRouter", "_asyncio_router"),
        (routers, "AsyncioRouter", "_request_router"),
    ):
        _require_use(getattr(owner, name, None), "__init__", attribute, workaround)
    known = isinstance(getattr(getattr(request_routers, "RequestRouter", None), "curr_replicas", None), property)
    require(known, workaround, "RequestRouter.curr_replicas is not a property")


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def require(holds: bool, workaround: str, otherwise: str) -> None:
    if not holds:
        raise RayChangedError(workaround, otherwise)


def import_module(name: str, workaround: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise RayChangedError(workaround, f"there is no module {name}") from None


def _require_arguments(owner: Any, name: str, arguments: list[str], workaround: str) -> None:
    code = getattr(getattr(owner, name, None), "__code__", None)
    actual = None if code is None else list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    require(actual == arguments, workaround, f"{name} takes {actual} and not {arguments}")


def _require_use(owner: Any, function: str, name: str, workaround: str) -> None:
    """Raise RayChangedError unless the function's body contains the name of the patched function or the attribute."""
    code = getattr(getattr(owner, function, None), "__code__", None)
    path = f"{getattr(owner, '__name__', owner)}.{function}"
    require(code is not None and name in code.co_names, workaround, f"{path} does not use {name}")
