"""The client that a task works for, which shares the service with the others."""

from __future__ import annotations

import ipaddress
from contextvars import ContextVar

CLIENT: ContextVar[str] = ContextVar("client", default="")
"""The client that this task works for, or an empty string if it is unknown. Then its request shares with nobody."""

_IPV6_PREFIX = 64  # the addresses that one host has at least


def client_of(address: str) -> str:
    """Return the client behind an address: an IPv4 address, the network of an IPv6 address, or anything else as is."""
    if ":" not in address:
        return address
    try:
        host = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if host.ipv4_mapped is not None:
        return str(host.ipv4_mapped)
    return str(ipaddress.IPv6Network((host, _IPV6_PREFIX), strict=False))
