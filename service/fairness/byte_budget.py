"""A bound on bytes that requests bring at once, for all clients together and for each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import Overloaded

_RETRY_AFTER_S = 1.0


class Lease:
    """The bytes of one request, given back together."""

    def __init__(self, budget: ByteBudget, client: str) -> None:
        self._budget = budget
        self._client = client
        self.bytes = 0

    def grow_to(self, size: int) -> None:
        """Hold `size` bytes, or as many as before if those are more; raise Overloaded if there is no room for them."""
        if size > self.bytes:
            self._budget.grow(self._client, self.bytes, size)
            self.bytes = size


class ByteBudget:
    """A number of bytes of which requests hold some, at most `of_client` of one client.

    A request that is alone gets what it asks for, so no limit makes a request impossible. Use it in one thread.
    """

    def __init__(self, total: int, of_client: int) -> None:
        self._total = total
        self._of_client = of_client
        self._held = 0
        self._held_by: Counter[str] = Counter()

    @contextmanager
    def lease(self, client: str) -> Iterator[Lease]:
        """Return a lease of no bytes yet, which ends with the block."""
        lease = Lease(self, client)
        try:
            yield lease
        finally:
            self._give_back(client, lease.bytes)

    def grow(self, client: str, size: int, new_size: int) -> None:
        """Hold `new_size` bytes for a request that has held `size`; raise Overloaded if there is no room for them."""
        others, others_of_client = self._held - size, self._held_by[client] - size
        if others and others + new_size > self._total:
            raise Overloaded("Too many bodies are on their way.", retry_after_s=_RETRY_AFTER_S)
        if others_of_client and others_of_client + new_size > self._of_client:
            raise Overloaded("Too many bodies of this client are on their way.", retry_after_s=_RETRY_AFTER_S)
        self._held = others + new_size
        self._held_by[client] = others_of_client + new_size

    def _give_back(self, client: str, size: int) -> None:
        self._held -= size
        self._held_by[client] -= size
        if not self._held_by[client]:
            del self._held_by[client]
