from __future__ import annotations

from contextlib import closing
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from models.catalogue.errors import CatalogueFullError, VectorsMissingError
from models.catalogue.folder import create_catalogue, is_valid_name, list_names
from models.catalogue.items import CatalogueLimits, Item
from models.catalogue.store import Catalogue

DIGEST, WIDTH = "a" * 64, 4


def test_catalogue_with_items_is_created_atomically(tmp_path: Path) -> None:
    items = [Item("1", "Emma"), Item("2", "Dune")]
    vectors = {"1": np.ones(WIDTH, np.float32), "2": np.zeros(WIDTH, np.float32)}
    with pytest.raises(VectorsMissingError):
        create_catalogue(tmp_path / "books", DIGEST, WIDTH, items, {"1": vectors["1"]})
    assert list(tmp_path.iterdir()) == []
    assert create_catalogue(tmp_path / "books", DIGEST, WIDTH, items, vectors)
    with closing(Catalogue(tmp_path / "books")) as books:
        snapshot = books.snapshot()
        assert snapshot.version == 0
        for item in items:
            row = snapshot.row_by_id[item.item_id]
            assert snapshot.texts[row] == item.text
            np.testing.assert_array_equal(snapshot.vectors[row], vectors[item.item_id])


def test_valid_names_are_folder_names_on_any_system(tmp_path: Path) -> None:
    good = ["books", "图书", "a-b_c.d", "x" * 128]
    bad = ["", ".", "..", ".books", "-books", "a/b", "a b", "a\x00b", "x" * 129, "书" * 43, "a\ud800"]
    assert [name for name in [*good, *bad] if is_valid_name(name)] == good
    for name in good[:3]:
        create_catalogue(tmp_path / name, DIGEST, WIDTH)
    (tmp_path / "no catalogue").mkdir()
    (tmp_path / "empty").mkdir()
    assert list_names(tmp_path) == sorted(good[:3])
    assert list_names(tmp_path / "missing") == []


@pytest.mark.parametrize("limits", [CatalogueLimits(1, 2**30), CatalogueLimits(100, 1)], ids=["items", "bytes"])
def test_items_of_a_catalogue_over_its_limits_can_be_removed(
    tmp_path: Path, limits: CatalogueLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [Item(str(number), "text") for number in range(3)]
    vectors = {item.item_id: np.ones(WIDTH, np.float32) for item in items}
    create_catalogue(tmp_path / "books", DIGEST, WIDTH, items, vectors)
    with closing(Catalogue(tmp_path / "books", limits)) as books:
        with pytest.raises(CatalogueFullError):
            books.edit(DIGEST, [Item("4", "text" * 5_000)], {"4": vectors["1"]})
        assert books.snapshot().count == 3
        sizes = count(2**31, 2**20)  # to record a removal may take another page
        monkeypatch.setattr("models.catalogue.store.used_bytes", lambda connection: next(sizes))
        assert books.edit(DIGEST, [], {}, ["1"]).outcomes == ("removed",)
