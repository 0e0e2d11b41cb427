"""Who counts as one client."""

from __future__ import annotations

import pytest

from service.fairness.client import client_of


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("192.0.2.7:80", "192.0.2.7:80"),
        ("a:b", "a:b"),
        ("", ""),
    ],
)
def test_the_addresses_of_one_host_are_one_client(address: str, client: str) -> None:
    assert client_of(address) == client
