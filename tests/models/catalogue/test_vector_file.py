"""Vector files: a number that no model makes is refused, with its reason."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from models.catalogue.errors import CatalogueError
from models.catalogue.folder import create_catalogue
from models.catalogue.items import Item
from models.catalogue.store import Catalogue

DIGEST, WIDTH = "a" * 64, 4


def put(catalogue: Catalogue, item_id: str) -> None:
    catalogue.edit(DIGEST, [Item(item_id, "text")], {item_id: np.ones(WIDTH, np.float32)})


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("row", [0, 1])
def test_a_vector_file_with_a_number_outside_its_range_is_refused(tmp_path: Path, number: float, row: int) -> None:
    path = tmp_path / "books"
    create_catalogue(path, DIGEST, WIDTH)
    with closing(Catalogue(path)) as books, closing(Catalogue(path)) as reader:
        put(books, "1")
        if row:  # a row that an open catalogue maps later
            assert reader.snapshot().count == 1
        put(books, "2")
        vectors = np.fromfile(path / "vectors.f32", np.float32)
        vectors[row * WIDTH + 2] = number
        vectors.tofile(path / "vectors.f32")
        expected = "books: its vector file cannot be used .*from -1e.06 to 1e.06, and finite.*; restore it"
        with pytest.raises(CatalogueError, match=expected):
            reader.snapshot()
