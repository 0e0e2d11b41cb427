"""HAProxy's configuration from Ray Serve is rewritten, and refused with a clear error if it is not as expected.

If a test fails after an upgrade of Ray, its message names the function of `service/cluster/ray_workarounds.py` to
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

from service.cluster import haproxy, ray_workarounds
from service.cluster.ray_workarounds import REPLICA_SERVER
from tests.support.ray_changes import RAY, REPOSITORY, expect_unchanged, raises_changed

TEMPLATE = RAY / "serve" / "_private" / "haproxy_templates.py"


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
