"""The bytes that clients may have on their way."""

from __future__ import annotations

from contextlib import suppress

import pytest

from service.errors import Overloaded
from service.fairness.byte_budget import ByteBudget


def test_all_clients_share_the_total_and_each_has_its_part() -> None:
    budget = ByteBudget(total=100, of_client=60)
    with budget.lease("a") as first, budget.lease("a") as second, budget.lease("b") as third:
        first.grow_to(50)
        with pytest.raises(Overloaded, match="of this client"):
            second.grow_to(11)
        second.grow_to(10)
        third.grow_to(40)
        with pytest.raises(Overloaded) as refused:
            third.grow_to(41)
        assert refused.value.headers["Retry-After"] == "1"
        third.grow_to(1)  # it holds more already


def test_a_body_that_is_alone_is_possible_whatever_its_size() -> None:
    budget = ByteBudget(total=100, of_client=60)
    with budget.lease("a") as alone:
        for size in (50, 70, 700):
            alone.grow_to(size)


def test_what_ends_is_given_back_and_forgotten() -> None:
    budget = ByteBudget(total=100, of_client=60)
    for number in range(5):
        with budget.lease(f"client {number}") as lease:
            lease.grow_to(60)
    with suppress(Overloaded), budget.lease("a") as lease, budget.lease("a") as other:
        lease.grow_to(50)
        other.grow_to(50)
    assert not budget._held
    assert not budget._held_by
