"""Users for the benchmark, drawn from a catalogue with a fixed seed: 50 events each, with times, and 1,000 candidates.

Also the large catalogue: 100,000 items with vectors that are random, since no arithmetic depends on what they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from models.bundle import Bundle
from models.catalogue.folder import create_catalogue
from models.catalogue.items import Item
from models.catalogue.store import Catalogue
from models.catalogue.vector_index import load_or_build
from models.ranking.recommender import Recommender

EVENTS, CANDIDATES, TOP_K = 50, 1_000, 10
LARGE, LARGE_ITEMS, LARGE_TOP_K = "bench-large", 100_000, 100
USERS = 64
_SEED = 17
_CHUNK = 10_000
_NEWEST = datetime(2011, 12, 9, 12, tzinfo=UTC)


def users(ids: Sequence[str]) -> list[dict[str, Any]]:
    """As a request has them, all candidates and events known to the catalogue of these ids."""
    random = Random(_SEED)
    return [
        {
            "history": list(_history(random, ids)),
            "candidates": [{"item_id": one} for one in random.sample(list(ids), min(CANDIDATES, len(ids)))],
            "top_k": TOP_K,
        }
        for _ in range(USERS)
    ]


def browsing(ids: Sequence[str]) -> list[dict[str, Any]]:
    """The same histories, asked of the whole large catalogue."""
    random = Random(_SEED)
    return [{"history": list(_history(random, ids)), "catalogue": LARGE, "top_k": LARGE_TOP_K} for _ in range(USERS)]


def _history(random: Random, ids: Sequence[str]) -> Iterator[dict[str, str]]:
    days = sorted((random.expovariate(1 / 60) for _ in range(EVENTS)), reverse=True)
    for day in days:
        at = (_NEWEST - timedelta(days=day)).isoformat(timespec="seconds")
        yield {"item_id": random.choice(ids), "event": "purchase", "at": at}


def place_large(folder: Path, bundle: Bundle, recommender: Recommender) -> None:
    """In a folder of catalogues, with its index, as `heed catalogue add` does."""
    rng = np.random.default_rng(_SEED)
    names = [f"large-{number}" for number in range(LARGE_ITEMS)]
    entries = [Item(name, name) for name in names]
    chunks = [rng.normal(size=(_CHUNK, recommender.width)).astype(np.float32) for _ in range(LARGE_ITEMS // _CHUNK)]
    vectors = np.concatenate(chunks)
    create_catalogue(
        folder / LARGE, bundle.model_digest, recommender.width, entries, dict(zip(names, vectors, strict=True))
    )
    with closing(Catalogue(folder / LARGE)) as catalogue:
        load_or_build(folder / LARGE, catalogue.snapshot().file, vectors, *recommender.query_subspace(vectors))
