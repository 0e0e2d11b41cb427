"""The answer to an unknown name lists few names, however many there are."""

from __future__ import annotations

import pytest

from models.names import MAX_LISTED_NAMES
from service.api.intent import find_by_name
from service.errors import NotFound


@pytest.mark.parametrize("kind", ["label set", "reply set"])
def test_a_head_and_a_reply_set_that_are_unknown(kind: str) -> None:
    registered = {f"team-{number}": number for number in range(500)}
    with pytest.raises(NotFound) as refused:
        find_by_name(registered, "Team 77", "/name", kind)
    assert refused.value.detail.startswith(f"There is no {kind} of this name; there are: team-77, ")
    assert refused.value.detail.endswith(f" and {500 - MAX_LISTED_NAMES} more.")
    assert refused.value.pointer == "/name"
    with pytest.raises(NotFound, match=r"there are: none\.$"):
        find_by_name({}, "team", "/name", kind)
