"""Users with a few baskets of six items."""

from __future__ import annotations

import numpy as np

from models.data.interactions import Interactions, make_sequence

ITEMS = 6


def interactions(*users: list[list[int]]) -> Interactions:
    """Each user's baskets, a day apart."""
    names = tuple(str(item) for item in range(ITEMS))
    sequences = {
        f"u{number}": make_sequence(
            [(86400.0 * day, dict.fromkeys(basket, np.nan)) for day, basket in enumerate(baskets)]
        )
        for number, baskets in enumerate(users)
    }
    return Interactions("purchase", names, names, sequences)
