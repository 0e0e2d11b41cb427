"""The configuration that Serve writes, before it reaches HAProxy."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

from service import haproxy

WRITTEN = """global
    log 127.0.0.1:514 local0 info
    stats socket /run/admin.sock mode 666 level admin expose-fd listeners
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    errorfile 503 /run/500.http
frontend prometheus
    bind :9101
    mode http

frontend http_frontend
    bind 127.0.0.1:8000
    default_backend replicas
backend replicas
    server one 127.0.0.1:30000 check
listen stats
  bind *:8404
  stats enable
"""


def test_only_the_public_port_is_left_open() -> None:
    binds = [line.split()[1] for line in haproxy.harden(WRITTEN, None).splitlines() if line.strip().startswith("bind")]
    assert binds == ["127.0.0.1:8000"]
    assert "514" not in haproxy.harden(WRITTEN, None)
    assert "mode 600 level admin" in haproxy.harden(WRITTEN, None)


@pytest.mark.parametrize(
    ("host", "bind"), [("0.0.0.0", "0.0.0.0:8000"), ("::1", "[::1]:8000"), (None, "127.0.0.1:8000")]
)
def test_the_public_port_goes_where_it_was_told(host: str | None, bind: str) -> None:
    hardened = haproxy.harden(WRITTEN, host)
    assert f"frontend http_frontend\n    bind {bind}\n" in hardened
    assert "server one 127.0.0.1:30000 check" in hardened


def test_hardening_twice_changes_nothing_more() -> None:
    once = haproxy.harden(WRITTEN, "0.0.0.0")
    assert haproxy.harden(once, "0.0.0.0") == once


def test_haproxy_takes_it(tmp_path: Path) -> None:
    binary = haproxy.find()
    assert binary is not None
    path = tmp_path / "haproxy.cfg"
    path.write_text(haproxy.harden(WRITTEN, None).replace("/run/", f"{tmp_path}/"))
    checked = subprocess.run([binary, "-c", "-f", path], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    "expected",
    ["frontend prometheus\n    bind :", "frontend http_frontend\n    bind ", "listen stats\n  bind *:", "\ndefaults\n"],
)
def test_serve_still_writes_what_this_changes(expected: str) -> None:
    """After an upgrade of Ray this says that `harden` must be read again."""
    ray = importlib.util.find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    template = Path(ray.origin).parent / "serve" / "_private" / "haproxy_templates.py"
    assert expected in template.read_text()
