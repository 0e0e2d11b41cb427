"""Files of a bundle's history model and of its own catalogue."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from models.bundle import Bundle, BundleError
from models.catalogue.errors import EditError
from models.catalogue.items import Item
from models.prediction.ranges import check_array
from models.ranking.recommender import Recommender

WEIGHTS, ITEMS, ITEM_VECTORS = "history.safetensors", "items.json", "items.safetensors"
"""Files of a bundle: the weights of the history model, the catalogue's items, and their item vectors as `vectors`."""

Array = NDArray[np.float32]


def load_recommender(bundle: Bundle) -> Recommender:
    """Load a bundle's history model.

    Raises BundleError if the files are missing or do not hold one, or a number in them is outside its range.
    """
    try:
        weights = load_file(bundle.path / WEIGHTS)
        catalogue, items, vectors = load_own_catalogue(bundle)
        for name, values in [*weights.items(), (ITEM_VECTORS, vectors)]:
            check_array(name, values)
        if "fade" in weights:
            check_array("fade", weights["fade"], 0.0, 1.0)
        for item in items:
            item.content()  # refuses numbers outside their range
        ids = training_index_by_id([item.item_id for item in items], weights["known"])
        return Recommender(weights, catalogue, ids, vectors)
    except (KeyError, TypeError, ValueError, OSError, IndexError, SafetensorError, EditError, RecursionError) as error:
        raise BundleError(
            f"bundle {bundle.path.name}: no history model can be read ({error!r}); export again"
        ) from error


def training_index_by_id(item_ids: Sequence[str], known: Array) -> dict[str, int]:
    """Return the training index of each item ID, for `Recommender.ids`.

    The index is -1 where `known` (items,) is 0, which marks items without interactions in training.
    """
    return {item_id: index if known[index] else -1 for index, item_id in enumerate(item_ids)}


def load_own_catalogue(bundle: Bundle) -> tuple[str, list[Item], Array]:
    """Load the bundle's own catalogue: its name, its items and their item vectors (items, width)."""
    content = json.loads((bundle.path / ITEMS).read_text(encoding="utf-8"))
    items = [Item(**row) for row in content["items"]]
    return str(content["catalogue"]), items, load_file(bundle.path / ITEM_VECTORS)["vectors"]


def save_items(path: Path, catalogue: str, items: Sequence[Item], vectors: Array) -> None:
    """Write a bundle's own catalogue into its folder."""
    content = {"catalogue": catalogue, "items": [asdict(item) for item in items]}
    (path / ITEMS).write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    save_file({"vectors": np.ascontiguousarray(vectors)}, path / ITEM_VECTORS)
