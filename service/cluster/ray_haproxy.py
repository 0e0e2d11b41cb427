"""The configuration that Serve writes for HAProxy, and how it becomes Heed's.

`ingress` has the lines that are added, and this module the text of Serve that they are added to. It first checks that
Serve still writes that text, as `ray_workarounds` does for the rest of Ray, and raises RayChangedError if not.

It imports nothing heavy, because HAProxy's launcher runs again at each reload.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

from service.cluster.ingress import Ingress
from service.cluster.ray_workarounds import import_module, require

REPLICA_SERVER = "SERVE_REPLICA"
"""The prefix of the names that Serve gives to replicas in HAProxy's configuration.

It is used to count, in HAProxy's statistics, the replicas that get requests. Serve has no public interface for that:
its status calls a replica running before HAProxy knows of it. Without it, `heed serve` prints "Ready" too early.
"""

_NAME = "rewrite_haproxy_config"
_REWRITTEN = "# Rewritten by Heed.\n"
_DEFAULT_BUFFER_BYTES = 16_384  # HAProxy's, if nothing else is said
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
    "%}timeout connect {{ config.timeout_connect_s }}s{%",
    "%}timeout http-request {{ config.timeout_http_request_s }}s{%",
    "%}timeout queue {{ config.timeout_queue_s }}s{%",
    "\n    tune.bufsize {{ config.bufsize }}",
    "\n    option abortonclose",
    "\n    errorfile 503 ",
    "\n    use_backend {{ backend.name or 'unknown' }} if is_{{ backend.name or 'unknown' }}\n",
    "\nbackend default_backend\n    http-request return status 404 content-type text/plain ",
    "\nbackend {{ backend.name",
    "\n    http-reuse always",
    "\n    server {{ server.name }} {{ server.host }}:{{ server.port }} check",
    "\n    server {{ backend.fallback_server.name }} {{ backend.fallback_server.host }}:"
    "{{ backend.fallback_server.port }} check backup",
)
"""Text in Serve's template that `rewrite_haproxy_config` changes or relies on."""


def check_template() -> None:
    """Raise RayChangedError if Serve would write another configuration for HAProxy than this module knows."""
    ray = importlib.util.find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    path = Path(ray.origin).parent / "serve" / "_private" / "haproxy_templates.py"
    template = path.read_text(encoding="utf-8") if path.is_file() else ""
    for expected in _TEMPLATE:
        require(expected in template, _NAME, f"Serve's template for HAProxy has no {expected.strip()!r}")
    _, _, config = template.partition('HAPROXY_CONFIG_TEMPLATE = """')
    unknown = _sections_with_ports(config) - _SECTIONS_WITH_PORTS
    require(not unknown, _NAME, f"Serve's configuration of HAProxy opens a port in {', '.join(sorted(unknown))}")
    names = import_module("ray.serve._private.common", "REPLICA_SERVER")
    prefix = str(getattr(names, "REPLICA_ID_FULL_ID_STR_PREFIX", ""))
    require(prefix.startswith(REPLICA_SERVER), "REPLICA_SERVER", f"names of replicas begin with {prefix!r}")


def rewrite_haproxy_config(config: str, ingress: Ingress, host: str | None) -> str:
    """Return Serve's configuration without open statistics ports, and with our lanes, limits and errors.

    The public port listens on `host`, or where Serve put it if `host` is None. Replicas stay where Serve put them.
    Rewriting a second time changes nothing.

    Serve has no settings for its two statistics ports, the time limits of slow headers, the requests per replica, the
    queue and the text of errors. Without this, those ports are open to the network and every user can use the admin
    socket. HAProxy gives a gateway all requests at once, and Serve's own slow proxy gets them if no gateway is up.
    Errors are plain text, and answers carry their request's ID twice.
    """
    address = "" if host is None else f"[{host}]" if ":" in host else host
    if not config.startswith(_REWRITTEN):
        config = _REWRITTEN + _rewrite(config, ingress, address)
    _check_rewritten(config, ingress, address)
    return config


def _rewrite(config: str, ingress: Ingress, address: str) -> str:
    config = _remove_section(_remove_section(config, "frontend prometheus"), "listen stats")
    # A log target that is an address opens a UDP socket on all interfaces, for a syslog that does not exist.
    config = _remove_lines(config, r"log \S+:\d+ ")
    config = config.replace(" mode 666 level admin ", " mode 600 level admin ")
    config = _remove_lines(config, r"(?:errorfile|http-error|timeout queue)\b")
    for setting in re.findall(r"^ +(timeout \S+|option \S+)", ingress.default_lines(), flags=re.M):
        config = _remove_lines(config, rf"{setting}\b")
    config = config.replace("\ndefaults\n", f"\ndefaults\n{ingress.default_lines()}", 1)
    public = rf"^{_PUBLIC_FRONTEND}\n    bind "
    if address:
        config = re.sub(rf"({public})\S+(?=:\d+$)", lambda match: match[1] + address, config, flags=re.M)
    backends = _backends(config)
    config = re.sub(
        rf"{public}.*\n", lambda match: match[0] + ingress.frontend_lines(list(backends)), config, flags=re.M
    )
    config = re.sub(r"^    http-request return status 404 .*\n", ingress.not_found_line(), config, flags=re.M)
    for name, servers in backends.items():
        config = _split_into_lanes(config, ingress, name, servers)
    return config


def _split_into_lanes(config: str, ingress: Ingress, name: str, servers: Mapping[str, str]) -> str:
    """Return the configuration with a backend per lane for the replicas of Serve's backend of this name."""
    *others, last = ingress.lanes(_buffer_bytes(config))
    section = _remove_lines(_section(config, f"backend {name}"), r"server \S+ \S+ check backup$")
    inherited = "".join(re.findall(r"^[ \t]+(?:log|http-reuse|timeout) .*\n", section, flags=re.M))
    section = re.sub(r"^([ \t]+server \S+ \S+ check.*)$", rf"\1 maxconn {last.gateway_requests}", section, flags=re.M)
    section += ingress.admission_lines(name, last, list(servers))
    section += "".join(ingress.lane_section(name, lane, servers, inherited) for lane in others)
    config = config.replace(_section(config, f"backend {name}"), section)
    route = _routes(config)[name]
    lanes = "".join(route.replace(name, name + lane.suffix, 1) + f" {lane.condition}\n" for lane in others)
    return config.replace(f"{route}\n", f"{lanes}{route}\n", 1)


def _check_rewritten(config: str, ingress: Ingress, address: str) -> None:
    open_sections = _sections_with_ports(config) - {_PUBLIC_FRONTEND, "frontend grpc_frontend"}
    require(not open_sections, _NAME, f"HAProxy would open a port in {', '.join(sorted(open_sections))}")
    require(f"{_PUBLIC_FRONTEND}\n    bind {address}" in config, _NAME, "the public port of HAProxy is missing")
    sockets = re.findall(r"^[ \t]+stats socket .*$", config, flags=re.M)
    require(all(" mode 600 level admin " in line for line in sockets), _NAME, "any user can use HAProxy's admin socket")
    require(f"\ndefaults\n{ingress.default_lines()}" in config, _NAME, "HAProxy's section `defaults` is missing")
    backends = _backends(config)
    require(ingress.frontend_lines(list(backends)) in config, _NAME, "the public port of HAProxy has no limits")
    replicas = re.findall(r"^[ \t]+server \S+ \S+ check(?!.* maxconn \d+$).*$", config, flags=re.M)
    require(not replicas, _NAME, "HAProxy would give a replica or Serve's proxy all requests at once")
    for name, servers in backends.items():
        for lane in ingress.lanes(_buffer_bytes(config)):
            lines = ingress.admission_lines(name + lane.suffix, lane, list(servers))
            require(lines in config, _NAME, f"HAProxy's backend {name + lane.suffix} has no queue")


def _routes(config: str) -> dict[str, str]:
    """Return the line that sends requests to each of Serve's backends, by its name."""
    section = _section(config, _PUBLIC_FRONTEND)
    return {match[1]: match[0] for match in re.finditer(r"^    use_backend (\S+) if is_\S+$", section, flags=re.M)}


def _backends(config: str) -> dict[str, dict[str, str]]:
    """Return the addresses of the replicas in each of Serve's backends, by name."""
    server = re.compile(r"^[ \t]+server (\S+) (\S+) check(?!.* backup)", re.M)
    return {name: dict(server.findall(_section(config, f"backend {name}"))) for name in _routes(config)}


def _buffer_bytes(config: str) -> int:
    size = re.search(r"^[ \t]+tune\.bufsize (\d+)$", config, flags=re.M)
    return int(size[1]) if size else _DEFAULT_BUFFER_BYTES


def _sections_with_ports(config: str) -> set[str]:
    """Return the title lines of the sections with a `bind`."""
    sections = re.findall(r"^((?:frontend|listen|backend) .+)\n((?:[ \t{].*\n|\n)*)", config, flags=re.M)
    return {title for title, lines in sections if re.search(r"^[ \t]+bind ", lines, flags=re.M)}


def _section(config: str, title: str) -> str:
    """Return a section, its title line and the indented lines below it, or "" if it is missing."""
    section = re.search(rf"^{re.escape(title)}\n(?:[ \t]+.*\n|\n)*", config, flags=re.M)
    return section[0] if section else ""


def _remove_section(config: str, title: str) -> str:
    section = _section(config, title)
    return config.replace(section, "", 1) if section else config


def _remove_lines(config: str, beginning: str) -> str:
    return re.sub(rf"^[ \t]+{beginning}.*\n", "", config, flags=re.M)
