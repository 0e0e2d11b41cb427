"""A split of three users, two of whom have targets."""

from __future__ import annotations

import pytest

from models.data.interactions import Split, hold_out_last
from tests.support.tiny_baskets import interactions


@pytest.fixture
def split() -> Split:
    return hold_out_last(interactions([[0, 1], [1, 2], [1, 4]], [[3], [3, 4], [3, 0]], [[5, 4]]))
