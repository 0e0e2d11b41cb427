"""Turns: equal shares for those who wait, newcomers first, and nobody left behind."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.fairness.turns import FairOrder, Flow

HEAD_START = 100


def joined(order: FairOrder[Flow], count: int) -> list[Flow]:
    flows = [Flow() for _ in range(count)]
    for flow in flows:
        order.add(flow)
    return flows


def first(order: FairOrder[Flow]) -> Flow:
    return next(iter(order))


def test_newcomers_have_their_turns_in_the_order_of_their_arrival() -> None:
    order: FairOrder[Flow] = FairOrder(HEAD_START)
    flows = joined(order, 5)
    for flow in flows:
        assert first(order) is flow
        order.charge(flow, 10, is_last=True)
        flows += joined(order, 1) if len(flows) < 9 else []
    assert len(order) == 0


@given(st.lists(st.integers(1, 100), min_size=2, max_size=400), st.integers(2, 20))
def test_flows_that_always_wait_get_equal_shares(turns: list[int], count: int) -> None:
    order: FairOrder[Flow] = FairOrder(HEAD_START)
    flows = joined(order, count)
    had = Counter(dict.fromkeys(flows, 0))
    for tokens in turns:
        flow = first(order)
        had[flow] += tokens
        order.charge(flow, tokens, is_last=False)
        assert max(had.values()) - min(had.values()) <= max(turns)


def test_a_newcomer_goes_ahead_of_flows_that_had_turns() -> None:
    order: FairOrder[Flow] = FairOrder(HEAD_START)
    for flow in joined(order, 2):
        order.charge(flow, 100, is_last=False)
    for _ in range(7):
        order.charge(first(order), 100, is_last=False)
        (newcomer,) = joined(order, 1)
        assert first(order) is newcomer
        order.charge(newcomer, 1, is_last=True)


@pytest.mark.parametrize("waiting", [1, 3])
def test_endless_newcomers_leave_each_other_flow_a_ninth(waiting: int) -> None:
    order: FairOrder[Flow] = FairOrder(HEAD_START)
    patient = joined(order, waiting)
    had: Counter[Flow] = Counter()
    for _ in range(5000):
        if len(order) < 300:
            joined(order, 10)
        flow = first(order)
        had[flow] += 10
        order.charge(flow, 10, is_last=flow not in patient)
    assert all(had[flow] >= 0.9 * 50_000 / (8 + waiting) for flow in patient)


def test_time_alone_is_neither_owed_nor_saved() -> None:
    order: FairOrder[Flow] = FairOrder(HEAD_START)
    (busy,) = joined(order, 1)
    for _ in range(1000):
        order.charge(busy, 100, is_last=False)
    (newcomer,) = joined(order, 1)
    had: Counter[Flow] = Counter()
    for _ in range(20):
        flow = first(order)
        had[flow] += 100
        order.charge(flow, 100, is_last=False)
    assert abs(had[busy] - had[newcomer]) <= 200


def test_sparse_newcomers_are_ahead_however_many_have_come_before() -> None:
    order: FairOrder[Flow] = FairOrder(HEAD_START)
    joined(order, 1)
    for _ in range(1000):
        order.charge(first(order), 100, is_last=False)
        (newcomer,) = joined(order, 1)
        assert first(order) is newcomer
        order.charge(newcomer, 30, is_last=True)


def test_who_leaves_is_forgotten() -> None:
    order: FairOrder[Flow] = FairOrder(HEAD_START)
    flows = joined(order, 50)
    for flow in flows[::2]:
        order.charge(flow, 10, is_last=False)
    for flow in flows:
        order.remove(flow)
    assert list(order) == []
    assert not order._newcomers


def test_tokens_ahead_are_at_most_a_share_of_each_flow() -> None:
    order: FairOrder[Flow] = FairOrder(HEAD_START)
    flows = joined(order, 3)
    for flow, tokens in zip(flows, (5, 50, 5000), strict=True):
        flow.tokens = tokens
    assert order.tokens_ahead(5055, share=20) == 5 + 20 + 20
    assert order.tokens_ahead(5055, share=10_000) == 5055
    assert order.tokens_ahead(55, share=20, own=flows[2]) == 5 + 20
    assert FairOrder[Flow](HEAD_START).tokens_ahead(0, share=20) == 0


def test_tokens_ahead_in_a_long_order_are_near_the_truth() -> None:
    order: FairOrder[Flow] = FairOrder(HEAD_START)
    flows = joined(order, 3000)
    for flow in flows:
        flow.tokens = 10
    flows[-1].tokens = 100_000
    assert order.tokens_ahead(129_990, share=20) == pytest.approx(30_010, rel=0.01)
    assert order.tokens_ahead(129_990, share=200_000) <= 129_990
