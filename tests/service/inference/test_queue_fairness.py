"""The queue under random requests of several clients: it idles never, loses nothing, and forgets who has left."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import Overloaded
from service.inference.batch_policy import BatchLimits
from tests.support.model_time import ModelTime, Post

LIMITS = BatchLimits(batch_tokens=64, batch_items=4, queue_tokens=2000, text_tokens=80)


@dataclass(frozen=True, slots=True)
class Event:
    """What happens before a batch: a request of a client comes, or the one with this number leaves."""

    address: str
    lengths: tuple[int, ...]
    leaves: int | None


events = st.builds(
    Event,
    st.sampled_from(["", "a", "b", "c"]),
    st.lists(st.integers(1, 80), min_size=1, max_size=30).map(tuple),
    st.none() | st.integers(0, 9),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(events, max_size=4), max_size=12))
def test_nothing_idles_is_lost_or_remembered(rounds: list[list[Event]]) -> None:
    model = ModelTime(LIMITS)
    posts: list[Post] = []
    withdrawn: set[Post] = set()
    for arriving in rounds:
        for event in arriving:
            if event.leaves is not None and event.leaves < len(posts):
                model.withdraw(posts[event.leaves])
                withdrawn.add(posts[event.leaves])
            try:
                posts.append(model.post(event.address, event.lengths))
            except Overloaded:
                assert len(model.queue), "an empty queue refuses nothing"
        waiting = len(model.queue)
        assert model.step() is (waiting > 0), "the model works while anything waits"
    model.run()
    ran = Counter(item for batch in model.batches for item in batch)
    assert all(ran[item] == 1 for post in posts if post not in withdrawn for item in post.items)
    assert all(ran[item] <= 1 for post in withdrawn for item in post.items)
    for batch in model.batches:
        lengths = [item.work.length for item in batch]
        assert len(batch) <= LIMITS.batch_items
        assert len(batch) == 1 or max(lengths) * len(lengths) <= LIMITS.batch_tokens
    assert not model.expired
    assert not len(model.queue)
    assert not model.throughput.pending
    left = model.queue
    assert (left._tokens, left._held, left._by_address, len(left._clients)) == (0, 0, {}, 0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 80), min_size=2, max_size=6), st.data())
def test_clients_that_always_wait_get_equal_shares(lengths: list[int], data: st.DataObject) -> None:
    model = ModelTime(BatchLimits(batch_tokens=80, batch_items=4, queue_tokens=10**6))
    requests = [data.draw(st.integers(1, 5)) for _ in lengths]
    for address, (length, count) in enumerate(zip(lengths, requests, strict=True)):
        for _ in range(count):
            model.post(f"client {address}", [length] * (3000 // length))
    shares: Counter[str] = Counter(dict.fromkeys((f"client {number}" for number in range(len(lengths))), 0))
    while sum(shares.values()) < 2500:
        assert model.step()
        for item in model.batches[-1]:
            shares[item.request.address] += item.work.length
    assert max(shares.values()) - min(shares.values()) <= 2 * 80
