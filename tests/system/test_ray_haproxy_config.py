"""HAProxy's configuration from Ray Serve is rewritten, and refused with a clear error if it is not as expected.

If a test fails after an upgrade of Ray, its message names the function of `service/cluster/ray_haproxy.py` to
review. Tests that remove something from Ray show that the service would then refuse to start.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.serve._private import common, haproxy_templates
from ray.serve._private import haproxy as serve_haproxy

from service.cluster import haproxy, ray_haproxy
from service.cluster.ingress import Ingress
from service.cluster.ray_haproxy import REPLICA_SERVER
from tests.support.balanced import running, wait_until
from tests.support.local_service import Client, free_port
from tests.support.ray_changes import RAY, REPOSITORY, expect_unchanged, raises_changed

TEMPLATE = RAY / "serve" / "_private" / "haproxy_templates.py"


def written_by_serve(folder: Path, replicas: int = 2, is_deployed: bool = True) -> str:
    """Return a configuration from Serve for replicas, with its proxy as the fallback."""
    names = list(enumerate(("one", "two")[:replicas]))
    servers = [serve_haproxy.ServerConfig(name, "127.0.0.1", 30_000 + index) for index, name in names]
    fallback = serve_haproxy.ServerConfig("last", "127.0.0.1", 30_002)
    backend = serve_haproxy.BackendConfig(
        name="heed", path_prefix="/", app_name="heed", servers=servers, fallback_server=fallback
    )
    state = str(folder / "server-state")
    config = serve_haproxy.HAProxyConfig(
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=state,
        is_head=True,
        has_received_routes=True,
        has_received_servers=is_deployed,
    )
    file = folder / "haproxy.cfg"
    backends = {"heed": backend} if is_deployed else {}
    serve_haproxy.HAProxyApi(config, backends, str(file))._generate_config_file_internal()
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
        assert hardened.count("http-error status") == 5 + 4  # of the section `defaults`, and of each lane
        assert hardened.count("timeout http-request") == 1
        assert hardened.count("X-Request-ID") == 1
        assert re.findall(r"use-server (\S+) if", hardened) == ["one", "two"] * 4


def test_serves_own_proxy_gets_no_requests(tmp_path: Path) -> None:
    with expect_unchanged("rewrite_haproxy_config"):
        written = written_by_serve(tmp_path)
        assert "server last " in written
        hardened = haproxy.harden_config(written, None)
        assert "server last " not in hardened
        assert "backup" not in hardened
        assert "text/plain lf-string" not in hardened


def test_each_lane_has_its_own_limit_and_the_health_of_the_first(tmp_path: Path) -> None:
    with expect_unchanged("rewrite_haproxy_config"):
        hardened = haproxy.harden_config(written_by_serve(tmp_path), None, Ingress(gateway_requests=40))
        limits = re.findall(r"^    server one (\S+) (?:check .*|track (\S+)) maxconn (\d+)$", hardened, flags=re.M)
        address = "127.0.0.1:30000"
        assert limits == [(address, "", "40"), *((address, "heed/one", limit) for limit in ("32", "8", "10"))]
        assert re.findall(r"^    use_backend (\S+) ", hardened, flags=re.M) == [
            "heed-light",
            "heed-explain",
            "heed-large",
            "heed",
        ]
        assert hardened.count("http-reuse always") == 4


def test_the_launcher_takes_the_limits_from_the_environment() -> None:
    assert haproxy.read_ingress({}) == Ingress()
    environment = {"HEED_GATEWAY_REQUESTS": "7", "HEED_GATEWAY_QUEUE_S": "0.25", "HEED_SAME_MACHINE": "True"}
    assert haproxy.read_ingress(environment) == Ingress(gateway_requests=7, queue_s=0.25, connect_ms=40)


def test_a_connection_within_a_machine_has_its_own_time_limit(tmp_path: Path) -> None:
    with expect_unchanged("rewrite_haproxy_config"):
        limits = {
            connect_ms: re.findall(r"timeout connect (\S+)", haproxy.harden_config(written, None, ingress))
            for connect_ms in (None, 40)
            for written, ingress in [(written_by_serve(tmp_path), Ingress(connect_ms=connect_ms))]
        }
        assert limits == {None: ["5s"], 40: ["40ms"]}


@pytest.mark.parametrize(("replicas", "is_deployed"), [(0, False), (0, True), (2, True)])
def test_before_any_replica_answers_every_path_gets_503(tmp_path: Path, replicas: int, is_deployed: bool) -> None:
    port = free_port()
    hardened = haproxy.harden_config(written_by_serve(tmp_path, replicas, is_deployed), None)
    (tmp_path / "server-state").touch()
    # Nothing listens on the ports of the replicas, so two of them are not ready either.
    for written in ("127.0.0.1:30000", "127.0.0.1:30001"):
        hardened = hardened.replace(written, f"127.0.0.1:{free_port()}")
    with running(tmp_path, hardened.replace(":8000\n", f":{port}\n"), port), Client(port) as client:
        for path in ("/readyz", "/-/healthz", "/-/routes", "/v1/sentiment"):
            reply = client.post("text", path)
            if replicas:  # the first request finds out
                wait_until(lambda path=path: client.get(path).status == 503)  # type: ignore[misc]
                reply = client.get(path)
            assert reply.status == 503, path
            assert reply.headers["content-type"] == "application/problem+json"
            assert reply.headers["retry-after"] in ("1", "2")
            assert reply.json["code"] == "not_ready"


@pytest.mark.parametrize(("replicas", "is_deployed"), [(2, True), (0, True), (0, False)])
def test_haproxy_accepts_the_rewritten_configuration(tmp_path: Path, replicas: int, is_deployed: bool) -> None:
    path = tmp_path / "haproxy.cfg"
    hardened = haproxy.harden_config(written_by_serve(tmp_path, replicas, is_deployed), None)
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
        (" if is_heed\n", " if is_heed is_heed\n", "a replica or Serve's proxy"),
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


@pytest.mark.parametrize("expected", ray_haproxy._TEMPLATE)
def test_each_line_of_the_template_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: str) -> None:
    assert haproxy_templates.__file__ == str(TEMPLATE)
    replace_template(TEMPLATE.read_text(encoding="utf-8").replace(expected, "\n"), tmp_path, monkeypatch)
    with raises_changed("rewrite_haproxy_config", "template"):
        ray_haproxy.check_template()


def test_another_port_in_the_template_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extended = "\nfrontend admin\n    bind :9\nlisten stats\n"
    text = TEMPLATE.read_text(encoding="utf-8").replace("\nlisten stats\n", extended)
    replace_template(text, tmp_path, monkeypatch)
    with raises_changed("rewrite_haproxy_config", "frontend admin"):
        ray_haproxy.check_template()


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
        ray_haproxy.check_template()


def test_the_haproxy_launcher_imports_nothing_heavy() -> None:
    """It runs again at each reload of HAProxy."""
    heavy = "{'ray', 'pydantic', 'numpy', 'asyncio', 'importlib.metadata'}"
    code = f"import sys, service.cluster.haproxy; print({heavy} & set(sys.modules) or '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == ""
