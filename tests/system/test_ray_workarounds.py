"""Each workaround for Ray works, and is refused with a clear error on a Ray that lacks what it needs.

If a test fails after an upgrade of Ray, its message names the function of `service/cluster/ray_workarounds.py` to
review. Tests that remove something from Ray show that the service would then refuse to start.
"""

from __future__ import annotations

import mmap
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private import node, ray_constants, services, utils
from ray.serve import handle as handles
from ray.serve._private import common, haproxy_templates, replica, router
from ray.serve._private import haproxy as serve_haproxy
from ray.serve._private.request_router import request_router

from service.app import run_local
from service.cluster import haproxy, local, ray_workarounds
from service.cluster.ray_workarounds import RAY_VERSION, REPLICA_SERVER, RayChangedError
from tests.support.local_service import free_port

RAY = Path(ray.__file__).parent
REPOSITORY = Path(__file__).parent.parent.parent
TEMPLATE = RAY / "serve" / "_private" / "haproxy_templates.py"


@contextmanager
def expect_unchanged(workaround: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        pytest.fail(
            f"Ray {version('ray')} is not as `{workaround}` in service/cluster/ray_workarounds.py expects. Review that"
            f" function: adapt it or replace it by a new setting of Ray, and then set RAY_VERSION. {error!r}"
        )


def raises_changed(workaround: str, *words: str) -> Any:
    """Expect a RayChangedError that names the workaround, the tested version and the missing part."""
    expected = (*words, RAY_VERSION, workaround)
    return pytest.raises(RayChangedError, match="".join(f"(?=.*{re.escape(word)})" for word in expected))


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


# rewrite_haproxy_config and REPLICA_SERVER


def written_by_serve(folder: Path) -> str:
    """Return a configuration from Serve for two replicas, with its proxy as the fallback."""
    servers = [serve_haproxy.ServerConfig(name, "127.0.0.1", port) for name, port in (("one", 30_000), ("two", 30_001))]
    fallback = serve_haproxy.ServerConfig("last", "127.0.0.1", 30_002)
    backend = serve_haproxy.BackendConfig(name="heed", path_prefix="/", servers=servers, fallback_server=fallback)
    state = str(folder / "server-state")
    config = serve_haproxy.HAProxyConfig(
        socket_path=str(folder / "admin.sock"), server_state_base=str(folder), server_state_file=state
    )
    file = folder / "haproxy.cfg"
    serve_haproxy.HAProxyApi(config, {"heed": backend}, str(file))._generate_config_file_internal()
    return file.read_text(encoding="utf-8")


@pytest.mark.parametrize("host", [None, "0.0.0.0", "::1"])
def test_the_configuration_of_serve_is_rewritten(tmp_path: Path, host: str | None) -> None:
    with expect_unchanged("rewrite_haproxy_config"):
        written = written_by_serve(tmp_path)
        assert "mode 666" in written
        hardened = haproxy.harden_config(written, host)
        assert haproxy.harden_config(hardened, host) == hardened
        assert len(re.findall(r"^\s+bind ", hardened, flags=re.M)) == 1
        assert host is None or f"bind [{host}]:8000\n" in hardened or f"bind {host}:8000\n" in hardened
        assert "mode 666" not in hardened
        assert not re.search(r"^\s+log \S+:\d", hardened, flags=re.M)
        assert "errorfile" not in hardened
        assert hardened.count("http-error status") == 5
        assert hardened.count("timeout http-request") == 1
        assert hardened.count("X-Request-ID") == 1
        assert re.findall(r"use-server (\S+) if", hardened) == ["one", "two"]


def test_haproxy_accepts_the_rewritten_configuration(tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    hardened = haproxy.harden_config(written_by_serve(tmp_path), None)
    path.write_text(hardened, encoding="utf-8")
    (tmp_path / "server-state").touch()
    binary = haproxy.find_haproxy()
    assert binary is not None
    checked = subprocess.run([binary, "-c", "-f", path], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("text", "replacement", "word"),
    [
        ("frontend prometheus\n", "frontend statistics\n", "frontend statistics"),
        ("listen stats\n", "listen counters\n", "listen counters"),
        ("frontend http_frontend\n", "frontend public\n", "frontend public"),
        ("\ndefaults\n", "\ndefaults all\n", "defaults"),
        (" mode 666 level admin ", " mode 777 level admin ", "admin socket"),
    ],
)
def test_an_unknown_configuration_starts_no_haproxy(tmp_path: Path, text: str, replacement: str, word: str) -> None:
    path = tmp_path / "haproxy.cfg"
    written = written_by_serve(tmp_path)
    assert text in written
    path.write_text(written.replace(text, replacement), encoding="utf-8")
    launch = "import sys; from service.cluster.haproxy import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", launch, "-f", path], capture_output=True, text=True, cwd=REPOSITORY, timeout=20
    )
    assert done.returncode == 1
    assert re.fullmatch(rf"heed-haproxy: Ray .*{re.escape(word)}.*`rewrite_haproxy_config`.*\n", done.stderr), (
        done.stderr
    )
    assert path.read_text(encoding="utf-8") == written.replace(text, replacement)


@pytest.mark.parametrize("expected", ray_workarounds._TEMPLATE)
def test_each_line_of_the_template_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: str) -> None:
    assert haproxy_templates.__file__ == str(TEMPLATE)
    replace_template(TEMPLATE.read_text(encoding="utf-8").replace(expected, "\n"), tmp_path, monkeypatch)
    with raises_changed("rewrite_haproxy_config", "template"):
        ray_workarounds.check_ray()


def test_another_port_in_the_template_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extended = "\nfrontend admin\n    bind :9\nlisten stats\n"
    text = TEMPLATE.read_text(encoding="utf-8").replace("\nlisten stats\n", extended)
    replace_template(text, tmp_path, monkeypatch)
    with raises_changed("rewrite_haproxy_config", "frontend admin"):
        ray_workarounds.check_ray()


def replace_template(template: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "serve" / "_private" / TEMPLATE.name
    path.parent.mkdir(parents=True)
    path.write_text(template, encoding="utf-8")
    spec = SimpleNamespace(origin=str(folder / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)


def test_other_names_of_replicas_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert common.REPLICA_ID_FULL_ID_STR_PREFIX.startswith(REPLICA_SERVER)
    monkeypatch.setattr(common, "REPLICA_ID_FULL_ID_STR_PREFIX", "replica-")
    with raises_changed("REPLICA_SERVER", "replica-"):
        ray_workarounds.check_ray()


def test_the_haproxy_launcher_imports_nothing_heavy() -> None:
    """It runs again at each reload of HAProxy."""
    heavy = "{'ray', 'pydantic', 'numpy', 'asyncio', 'importlib.metadata'}"
    code = f"import sys, service.cluster.haproxy; print({heavy} & set(sys.modules) or '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == ""


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
        (cluster.log.parent / local.REFUSED).write_text("Ray 3 differs", encoding="utf-8")
        assert str(cluster._failure("the service did not start")).startswith("the service did not start: Ray 3 differs")
    finally:
        for path in cluster.log.parent.iterdir():
            path.unlink()
        cluster.log.parent.rmdir()
