"""Short requests beside large ones, in the time of a model: none is refused, and everybody gets a share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.errors import Overloaded
from tests.support.model_time import BATCH_S, LIMITS, TOKEN_S, ModelTime, Post

LONG_S = BATCH_S + 510 * TOKEN_S
PATIENCE_S = 1.0


@pytest.fixture
def model() -> ModelTime:
    model = ModelTime()
    model.measure()
    return model


def sending(
    model: ModelTime, every_s: float, send: Callable[[int], None], count: int = 10**9
) -> Callable[[float], None]:
    """Return what arrives while batches run: request after request, each `every_s` later, at most `count`."""
    next_s, sent = model.now_s + every_s, 0

    def arrive(end_s: float) -> None:
        nonlocal next_s, sent
        batch_s = model.now_s
        while next_s <= end_s and sent < count:
            model.now_s = next_s
            send(sent)
            sent += 1
            next_s += every_s
        model.now_s = batch_s

    return arrive


@pytest.mark.parametrize("addresses", [("large 1", "large 2", "short"), ("one", "one", "one"), ("", "", "")])
def test_short_requests_beside_two_large_ones_are_answered_soon(
    model: ModelTime, addresses: tuple[str, str, str]
) -> None:
    large = [model.post(address, [510] * 256) for address in addresses[:2]]
    short: list[Post] = []

    def send(number: int) -> None:
        short.append(model.post(addresses[2], [8 + number % 20], model.now_s + PATIENCE_S))

    model.run(sending(model, 0.05, send, 52))
    assert len(short) == 52
    waits = sorted(post.seconds for post in short)
    assert waits[-1] <= 3.5 * LONG_S, "what runs, and a turn of each large request"
    assert waits[26] <= 2 * LONG_S
    assert all(post.is_done for post in large)
    assert abs(large[0].seconds - large[1].seconds) <= 3 * LONG_S, "the large ones take turns"


def test_a_burst_of_short_requests_is_answered_in_its_own_time(model: ModelTime) -> None:
    for address in ("large 1", "large 2"):
        model.post(address, [510] * 256)
    model.step()
    short = [model.post("short", [12], model.now_s + PATIENCE_S) for _ in range(52)]
    model.run()
    own_s = 52 * 12 * TOKEN_S + 7 * BATCH_S
    assert max(post.seconds for post in short) <= 3 * own_s + 4 * LONG_S


@pytest.mark.parametrize("address", ["same", "other"])
def test_endless_short_requests_starve_no_large_one(model: ModelTime, address: str) -> None:
    large = model.post("same", [510] * 20)
    refused = 0

    def send(_: int) -> None:
        nonlocal refused
        try:
            model.post(address, [16], model.now_s + PATIENCE_S)
        except Overloaded:
            refused += 1

    model.run(sending(model, 16 * TOKEN_S / 1.5, send), until_s=model.now_s + 60)  # half as many again as it can answer
    assert refused
    assert large.is_done
    assert large.seconds <= 10 * 20 * LONG_S, "at least a ninth"


def test_a_client_with_many_requests_gets_no_more_than_one_with_few(model: ModelTime) -> None:
    many = [model.post("many", [100] * 5) for _ in range(40)]
    few = model.post("few", [100] * 20)
    model.run()
    own_s = 20 * (BATCH_S + 100 * TOKEN_S)
    assert few.seconds <= 2.2 * own_s
    assert all(post.is_done for post in many)


def test_one_client_cannot_fill_the_queue(model: ModelTime) -> None:
    for _ in range(4):  # half of the queue, an eighth for each
        model.post("greedy", [510] * 256)
    with pytest.raises(Overloaded):
        model.post("greedy", [510] * 256)
    model.post("other", [510] * 256)
    model.post("short", [20], model.now_s + PATIENCE_S)


def test_what_has_run_makes_room_for_its_client(model: ModelTime) -> None:
    model.post("greedy", [510] * 40)
    for _ in range(20):
        model.post("greedy", [510] * 20)
        for _ in range(20):
            assert model.step()


def test_what_plainly_cannot_end_in_time_is_refused(model: ModelTime) -> None:
    model.post("first", [510] * 256)
    with pytest.raises(Overloaded) as refused:
        model.post("second", [510] * 256, model.now_s + 10)
    assert int(refused.value.headers["Retry-After"]) == pytest.approx(256 * LONG_S, abs=2)
    model.post("second", [510] * 16, model.now_s + 10)


def test_withdrawn_items_release_their_share(model: ModelTime) -> None:
    large = [model.post("a", [510] * 256) for _ in range(4)]
    with pytest.raises(Overloaded):
        model.post("a", [510] * 256)
    model.withdraw(large[0])
    again = model.post("a", [510] * 8)
    for post in large[1:]:
        model.withdraw(post)
    model.run()
    assert again.seconds <= 8 * LONG_S * 1.01
    assert len(model.queue) == 0
    assert model.throughput.pending == 0


def test_items_of_a_request_of_equal_length_run_in_their_order(model: ModelTime) -> None:
    first, second = (model.post(address, [30] * 40) for address in ("a", "b"))
    model.run()
    for post in (first, second):
        order = [item for batch in model.batches for item in batch if item.request is post.items[0].request]
        assert order == post.items


def test_near_lengths_still_run_together(model: ModelTime) -> None:
    """As many batches as without turns: sixteen clients with short and long texts fill each other's batches."""
    for number in range(16):
        model.post(f"client {number}", [10, 20, 160])
    model.run()
    assert len(model.batches) == 2 + 2 + 16
    for batch in model.batches:
        lengths = [item.work.length for item in batch]
        assert max(lengths) * len(lengths) <= max(LIMITS.batch_tokens, *lengths)
