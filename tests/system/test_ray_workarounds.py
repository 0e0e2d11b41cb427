"""Each workaround for Ray works, and is refused with a clear error on a Ray that lacks what it needs.

If a test fails after an upgrade of Ray, its message names the function of `service/cluster/ray_workarounds.py` to
review. Tests that remove something from Ray show that the service would then refuse to start.
"""

from __future__ import annotations

import mmap
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private import node, ray_constants, services, utils
from ray.serve import handle as handles
from ray.serve._private import replica, router
from ray.serve._private.request_router import request_router

from service.app import run_local
from service.cluster import local, ray_workarounds
from service.cluster.ray_workarounds import RAY_VERSION
from tests.support.local_service import free_port
from tests.support.ray_changes import RAY, REPOSITORY, expect_unchanged, raises_changed


def test_the_pinned_version_is_the_reviewed_version() -> None:
    pinned = f'"ray[serve]=={RAY_VERSION}"'
    advice = "review every function of service/cluster/ray_workarounds.py, then set RAY_VERSION there"
    assert pinned in (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"), advice
    assert version("ray") == RAY_VERSION, advice


def test_this_ray_has_everything_needed() -> None:
    with expect_unchanged("check_ray"):
        ray_workarounds.check_ray()


# bind_to_loopback


def test_a_cluster_binds_to_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    with expect_unchanged("bind_to_loopback"):
        monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
        ray_workarounds.bind_to_loopback()
        assert services.get_node_ip_address() == "127.0.0.1"
        assert services.resolve_ip_for_localhost("127.0.0.1") == "127.0.0.1"


def test_a_missing_switch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ray_constants, "ENABLE_RAY_CLUSTER")
    with raises_changed("bind_to_loopback", "ENABLE_RAY_CLUSTER"):
        ray_workarounds.bind_to_loopback()


def test_a_switch_without_effect_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    monkeypatch.setattr(services, "get_node_ip_address", lambda: "192.0.2.1")
    with raises_changed("bind_to_loopback", "192.0.2.1"):
        ray_workarounds.bind_to_loopback()


# disable_dashboard


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A monkeypatch that restores what `disable_dashboard` and `close_handle_port` replace."""
    for owner, name in (
        (node.Node, "start_monitor"),
        (node.Node, "start_api_server"),
        (utils, "get_dashboard_dependency_error"),
        (replica, "add_port_to_grpc_server"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    return monkeypatch


def test_neither_dashboard_nor_autoscaler_starts(restored: pytest.MonkeyPatch) -> None:
    with expect_unchanged("disable_dashboard"):
        ray_workarounds.disable_dashboard()
        assert node.Node.start_monitor(None) is None
        assert node.Node.start_api_server(None, include_dashboard=False, raise_on_failure=False) is None
        assert isinstance(utils.get_dashboard_dependency_error(), ImportError)
        start = Path(node.__file__).read_text(encoding="utf-8")
        assert "self.start_monitor()" in start
        assert "self.start_api_server(" in start
        assert "is not None:" in lines_after(services.__file__, "get_dashboard_dependency_error() is not None")
        assert '"--minimal"' in lines_after(services.__file__, "get_dashboard_dependency_error() is not None")


def lines_after(file: str, text: str, lines: int = 6) -> str:
    _, match, after = Path(file).read_text(encoding="utf-8").partition(text)
    return match + "\n".join(after.splitlines()[:lines])


@pytest.mark.parametrize(
    ("owner", "name", "stand_in"),
    [
        (node.Node, "start_monitor", None),
        (node.Node, "start_api_server", lambda self, include_dashboard: None),
        (utils, "get_dashboard_dependency_error", lambda package: None),
        (services, "start_raylet", lambda *arguments: None),
    ],
)
def test_another_way_to_start_the_dashboard_is_refused(
    restored: pytest.MonkeyPatch, owner: Any, name: str, stand_in: Any
) -> None:
    restored.setattr(owner, name, stand_in)
    with raises_changed("disable_dashboard", name):
        ray_workarounds.disable_dashboard()


# close_handle_port


def bind(server: object, address: str) -> str:
    return address


def test_the_port_between_deployments_stays_on_loopback(restored: pytest.MonkeyPatch) -> None:
    with expect_unchanged("close_handle_port"):
        assert '"[::]:0"' in Path(replica.__file__).read_text(encoding="utf-8"), "a replica binds to another address"
        restored.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
        restored.setattr(replica, "add_port_to_grpc_server", bind)
        ray_workarounds.close_handle_port()
        assert replica.add_port_to_grpc_server(None, "[::]:0") == "127.0.0.1:0"
    with raises_changed("close_handle_port", "0.0.0.0:0"):
        replica.add_port_to_grpc_server(None, "0.0.0.0:0")


def test_that_port_stays_open_between_nodes(restored: pytest.MonkeyPatch) -> None:
    restored.setattr(ray.util, "get_node_ip_address", lambda: "192.0.2.1")
    before = replica.add_port_to_grpc_server
    ray_workarounds.close_handle_port()
    assert replica.add_port_to_grpc_server is before


@pytest.mark.parametrize(
    ("owner", "name", "stand_in"),
    [
        (replica, "add_port_to_grpc_server", lambda server: 0),
        (replica, "Replica", None),
        (replica.Replica, "_on_initialized", lambda self: None),
    ],
)
def test_another_way_to_open_that_port_is_refused(
    restored: pytest.MonkeyPatch, owner: Any, name: str, stand_in: Any
) -> None:
    restored.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    restored.setattr(owner, name, stand_in)
    with raises_changed("close_handle_port"):
        ray_workarounds.close_handle_port()
    with raises_changed("close_handle_port"):
        ray_workarounds.check_ray()


# replica_counter


def test_replicas_of_a_handle_are_counted() -> None:
    with expect_unchanged("replica_counter"):
        handle = SimpleNamespace(_router=None)
        count = ray_workarounds.replica_counter(handle)
        assert count() == 0  # before the first call
        inner = SimpleNamespace(_request_router=None)
        handle._router = SimpleNamespace(_asyncio_router=inner)
        assert count() == 0  # before Serve has sent the replicas
        inner._request_router = SimpleNamespace(curr_replicas={"one": object(), "two": object()})
        assert count() == 2


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (handles, "_DeploymentHandleBase"),
        (router, "SingletonThreadRouter"),
        (router, "CurrentLoopRouter"),
        (router, "AsyncioRouter"),
        (request_router, "RequestRouter"),
    ],
)
def test_another_way_to_hold_replicas_is_refused(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    monkeypatch.setattr(owner, name, type(name, (), {"__init__": lambda self: None}))
    with raises_changed("replica_counter", name):
        ray_workarounds.replica_counter(SimpleNamespace(_router=None))
    with raises_changed("replica_counter", name):
        ray_workarounds.check_ray()


# Variables of Ray's environment


def test_ray_still_reads_its_variables() -> None:
    """A variable in the tables of `local.py` that Ray does not read would have no effect."""
    tables = (local._TUNING, local._FORCED, local._PATHS, dict.fromkeys(local._PORTS, ""))
    names = {name for table in tables for name in table} - {"TMPDIR"}
    names |= {"RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S", "RAY_AUTH_TOKEN"}
    sources = [
        *(RAY / "serve" / "_private").glob("*.py"),
        *(RAY / "_private").rglob("*.py"),
        *(RAY / "_common").rglob("*.py"),
        RAY / "dashboard" / "consts.py",
        RAY / "autoscaler" / "_private" / "constants.py",
    ]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    unknown = {name for name in names if not re.search(rf"\b{name}\b", text)}
    with (RAY / "_raylet.so").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
        # The library stores names of Ray's configuration without the prefix: RAY_event_stats is event_stats.
        unknown = {name for name in unknown if library.find(name.removeprefix("RAY_").encode() + b"\0") < 0}
    assert not unknown, f"Ray {version('ray')} does not read these; look for their replacements: {unknown}"


# The start


def test_the_service_does_not_start_on_another_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(replica, "add_port_to_grpc_server")
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with raises_changed("close_handle_port"):
        run_local(str(tmp_path))
    assert "`close_handle_port`" in (tmp_path / local.REFUSED).read_text(encoding="utf-8")


def test_the_operator_sees_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.settings import Settings

    cluster = local.Cluster(Settings(port=free_port()))
    try:
        assert cluster.settings.same_machine
        (cluster.log.parent / local.REFUSED).write_text("Ray 3 differs", encoding="utf-8")
        assert str(cluster._failure("the service did not start")).startswith("the service did not start: Ray 3 differs")
    finally:
        shutil.rmtree(cluster.log.parent)
