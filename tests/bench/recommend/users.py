"""The users of the benchmark, sampled from a catalogue with a fixed seed: 50 timed events and 1,000 candidates each.

Also the large catalogue: 100,000 items with random vectors, because speed does not depend on their values.
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


def make_users(ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return users as in a request. All candidates and events are items of the catalogue."""
    rng = Random(_SEED)
    return [
        {
            "history": list(_history(rng, ids)),
            "candidates": [{"item_id": item_id} for item_id in rng.sample(list(ids), min(CANDIDATES, len(ids)))],
            "top_k": TOP_K,
        }
        for _ in range(USERS)
    ]


def make_browsing_users(ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return users with the same histories, for rankings of the whole large catalogue."""
    rng = Random(_SEED)
    return [{"history": list(_history(rng, ids)), "catalogue": LARGE, "top_k": LARGE_TOP_K} for _ in range(USERS)]


def _history(rng: Random, ids: Sequence[str]) -> Iterator[dict[str, str]]:
    days = sorted((rng.expovariate(1 / 60) for _ in range(EVENTS)), reverse=True)
    for day in days:
        time = (_NEWEST - timedelta(days=day)).isoformat(timespec="seconds")
        yield {"item_id": rng.choice(ids), "event": "purchase", "at": time}


def create_large_catalogue(folder: Path, bundle: Bundle, recommender: Recommender) -> None:
    """Create the large catalogue and its index in a folder of catalogues, as `heed catalogue add` does."""
    rng = np.random.default_rng(_SEED)
    names = [f"large-{number}" for number in range(LARGE_ITEMS)]
    items = [Item(name, name) for name in names]
    chunks = [rng.normal(size=(_CHUNK, recommender.width)).astype(np.float32) for _ in range(LARGE_ITEMS // _CHUNK)]
    vectors = np.concatenate(chunks)
    create_catalogue(
        folder / LARGE, bundle.model_digest, recommender.width, items, dict(zip(names, vectors, strict=True))
    )
    with closing(Catalogue(folder / LARGE)) as catalogue:
        load_or_build(folder / LARGE, catalogue.snapshot().file, vectors, *recommender.query_subspace(vectors))
