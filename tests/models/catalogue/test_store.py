from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.catalogue.errors import CatalogueError, CatalogueRemovedError, EditError, OutdatedError, VectorsMissingError
from models.catalogue.folder import create_catalogue, remove_catalogue
from models.catalogue.items import MAX_ATTRIBUTES, EditResult, Item, Vector
from models.catalogue.snapshot import Snapshot
from models.catalogue.store import Catalogue

DIGEST, WIDTH = "a" * 64, 4


def vector_of(text: str) -> Vector:
    """Return a different vector for each text."""
    return np.random.default_rng(abs(hash(text)) % 2**32).normal(size=WIDTH).astype(np.float32)


def put(catalogue: Catalogue, items: Sequence[Item], removed: Sequence[str] = ()) -> EditResult:
    return catalogue.edit(DIGEST, items, {item.item_id: vector_of(item.text) for item in items}, removed)


def content(snapshot: Snapshot) -> dict[str, str]:
    """Return the texts by item ID, after checking that each item has the vector of its text."""
    assert snapshot.active.sum() == snapshot.count
    for item_id, row in snapshot.row_by_id.items():
        assert snapshot.ids[row] == item_id
        assert snapshot.active[row]
        np.testing.assert_array_equal(snapshot.vectors[row], vector_of(snapshot.texts[row]))
    return {item_id: snapshot.texts[row] for item_id, row in snapshot.row_by_id.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    assert create_catalogue(tmp_path / "books", DIGEST, WIDTH)
    return tmp_path / "books"


@pytest.fixture
def books(path: Path) -> Iterator[Catalogue]:
    with closing(Catalogue(path)) as opened:
        yield opened


def test_items_are_added_changed_and_removed(books: Catalogue) -> None:
    assert put(books, [Item("1", "红楼梦"), Item("2", "Emma")]) == EditResult(("added", "added"), 1, 2)
    edited = put(books, [Item("2", "Persuasion"), Item("1", "红楼梦"), Item("3", "Dune")], ["4"])
    assert edited == EditResult(("changed", "unchanged", "added", "unchanged"), 2, 3)
    assert put(books, [], ["1", "9"]) == EditResult(("removed", "unchanged"), 3, 2)
    assert content(books.snapshot()) == {"2": "Persuasion", "3": "Dune"}
    assert put(books, [Item("1", "Ulysses")]) == EditResult(("added",), 4, 3)
    assert content(books.snapshot()) == {"1": "Ulysses", "2": "Persuasion", "3": "Dune"}


def test_edits_are_there_after_reopening(path: Path) -> None:
    with closing(Catalogue(path)) as books:
        put(books, [Item("1", "红楼梦", {"price": 3, "new": True, "shelf": "文学"}, 7)])
    with closing(Catalogue(path)) as reopened:
        snapshot = reopened.snapshot()
    assert content(snapshot) == {"1": "红楼梦"}
    assert (snapshot.name, snapshot.digest, snapshot.version, snapshot.popularity.tolist()) == (
        "books",
        DIGEST,
        1,
        [7.0],
    )
    for conditions in ({"price": 3}, {"new": True}, {"shelf": "文学"}):
        assert snapshot.filter_mask(conditions, [-1]) is not None
        assert snapshot.filter_mask(conditions).tolist() == [True]  # type: ignore[union-attr]


def test_only_a_new_text_needs_a_vector(books: Catalogue) -> None:
    put(books, [Item("1", "Emma"), Item("2", "Dune")])
    edited = books.edit(DIGEST, [Item("1", "Emma", {"price": 2}), Item("2", "Dune")], {})
    assert edited.outcomes == ("changed", "unchanged")
    with pytest.raises(VectorsMissingError) as refused:
        books.edit(DIGEST, [Item("1", "Emma", {"price": 9}), Item("2", "Dune II"), Item("3", "Ulysses")], {})
    assert refused.value.ids == ["2", "3"]
    snapshot = books.snapshot()
    assert content(snapshot) == {"1": "Emma", "2": "Dune"}
    assert snapshot.columns["price"].numbers.tolist()[0] == 2


def test_edit_without_changes_keeps_the_version(books: Catalogue) -> None:
    put(books, [Item("1", "Emma", {"a": 1.0, "b": "x"})])
    before = books.snapshot()
    assert put(books, [Item("1", "Emma", {"b": "x", "a": 1})]) == EditResult(("unchanged",), 1, 1)
    assert books.snapshot() is before


def test_snapshot_does_not_change_with_later_edits(books: Catalogue) -> None:
    put(books, [Item("1", "Emma"), Item("2", "Dune", {"price": 1})])
    before = books.snapshot()
    put(books, [Item("1", "Persuasion"), Item("3", "Ulysses", {"price": 5})], ["2"])
    after = books.snapshot()
    assert content(before) == {"1": "Emma", "2": "Dune"}
    assert content(after) == {"1": "Persuasion", "3": "Ulysses"}
    assert before.columns["price"].numbers.tolist()[1] == 1
    assert (before.rows, after.rows) == (2, 4)
    assert after.filter_mask() is not None
    assert after.filter_mask().tolist() == [False, False, True, True]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("item", "vector"),
    [
        (Item("2", "Dune", {"price": float("nan")}), [0, 0, 0, 0]),
        (Item("2", "Dune", {"price": 2**53 + 1}), [0, 0, 0, 0]),
        (Item("2", "Dune", {}, float("inf")), [0, 0, 0, 0]),
        (Item("2", "Dune"), [0, float("nan"), 0, 0]),
        (Item("2", "Dune"), [0, 0, float("-inf"), 0]),
        (Item("2", "Dune"), [0, 0, -2e6, 0]),
        (Item("2", "Dune"), [0, 0, 0]),
        (Item("1", "Dune"), [0, 0, 0, 0]),
        (Item("2", "Dune", {f"a{index}": 1 for index in range(MAX_ATTRIBUTES + 1)}), [0, 0, 0, 0]),
    ],
    ids=["nan", "inexact", "infinite", "nan vector", "infinite vector", "large vector", "short", "twice", "attributes"],
)
def test_invalid_edit_changes_nothing(books: Catalogue, item: Item, vector: list[float]) -> None:
    put(books, [Item("0", "Emma")])
    vectors = {"1": vector_of("Ulysses"), item.item_id: np.array(vector, np.float32)}
    with pytest.raises(EditError):
        books.edit(DIGEST, [Item("1", "Ulysses"), item], vectors)
    assert content(books.snapshot()) == {"0": "Emma"}
    assert put(books, [Item("1", "Ulysses")]).version == 2


def test_another_connection_sees_an_edit_at_once(path: Path) -> None:
    with closing(Catalogue(path)) as writer, closing(Catalogue(path)) as reader:
        changes = [reader.has_changes]
        assert content(reader.snapshot()) == {}
        changes.append(reader.has_changes)
        put(writer, [Item("1", "Emma")])
        changes.append(reader.has_changes)
        assert content(reader.snapshot()) == {"1": "Emma"}
        assert [*changes, reader.has_changes] == [True, False, True, False]


def test_concurrent_writers_lose_nothing(path: Path) -> None:
    errors: list[BaseException] = []

    def write(name: str) -> None:
        try:
            with closing(Catalogue(path)) as catalogue:
                for number in range(30):
                    put(catalogue, [Item(f"{name}{number}", f"{name} {number}"), Item("shared", name)])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    with closing(Catalogue(path)) as catalogue:
        texts = content(catalogue.snapshot())
    assert texts.pop("shared") in "abc"
    assert texts == {f"{name}{number}": f"{name} {number}" for name in "abc" for number in range(30)}


def test_uncommitted_tail_of_vectors_is_ignored_and_overwritten(path: Path) -> None:
    with closing(Catalogue(path)) as books:
        put(books, [Item("1", "Emma")])
        with (path / "vectors.f32").open("ab") as file:
            file.write(b"\xff" * 4 * WIDTH * 5 + b"half")
        assert content(books.snapshot()) == {"1": "Emma"}
        put(books, [Item("2", "Dune")])
        assert content(books.snapshot()) == {"1": "Emma", "2": "Dune"}


def test_compaction_does_not_disturb_a_reader(path: Path) -> None:
    with closing(Catalogue(path)) as books, closing(Catalogue(path)) as reader:
        put(books, [Item(f"{number}", f"text {number}", {"n": number}) for number in range(30)])
        assert not books.compact(min_dead_rows=10)
        put(books, [Item(f"{number}", f"other {number}", {"m": number}) for number in range(15)], ["20", "21"])
        before = reader.snapshot()
        expected = content(before)
        assert before.rows == 45
        assert books.compact(min_dead_rows=10)
        assert len(list(path.glob("vectors*"))) == 1
        assert not books.compact(min_dead_rows=10)
        after = reader.snapshot()
        assert (after.rows, after.version, after.filter_mask()) == (28, before.version, None)
        assert content(before) == content(after) == expected
        assert after.filter_mask({"m": {"lte": 3}}).sum() == 4  # type: ignore[union-attr]
        with closing(sqlite3.connect(path / "items.sqlite")) as database:
            assert database.execute("SELECT count(*) FROM items").fetchone() == (28,)
        put(books, [Item("20", "back")])
        assert content(reader.snapshot()) == expected | {"20": "back"}
        assert content(books.snapshot()) == expected | {"20": "back"}


def test_compaction_forgets_attributes_that_no_item_has(path: Path) -> None:
    with closing(Catalogue(path)) as books:
        put(books, [Item("1", "Emma", {f"a{index}": 1 for index in range(MAX_ATTRIBUTES)})])
        put(books, [Item("1", "Dune", {"a0": 1})])
        with pytest.raises(EditError):
            put(books, [Item("2", "Ulysses", {"b": 1})])
        assert books.compact(min_dead_rows=0)
        assert put(books, [Item("2", "Ulysses", {"b": 1})]).count == 2


def test_vectors_of_two_models_are_never_mixed(books: Catalogue) -> None:
    put(books, [Item("1", "Emma"), Item("2", "Dune")])
    other = "b" * 64
    with pytest.raises(OutdatedError, match=r"run heed catalogue rebuild books$"):
        books.edit(other, [Item("1", "Persuasion")], {"1": vector_of("Persuasion")})
    with pytest.raises(VectorsMissingError) as missing:
        books.replace_vectors(
            other, 2, {"1": ("Emma", np.ones(2, np.float32)), "2": ("old text", np.ones(2, np.float32))}
        )
    assert missing.value.ids == ["2"]
    books.replace_vectors(other, 2, {"1": ("Emma", np.ones(2, np.float32)), "2": ("Dune", np.zeros(2, np.float32))})
    snapshot = books.snapshot()
    assert (snapshot.digest, snapshot.version, snapshot.count) == (other, 2, 2)
    np.testing.assert_array_equal(snapshot.vectors[snapshot.row_by_id["1"]], [1, 1])
    with pytest.raises(OutdatedError):
        put(books, [Item("1", "Persuasion")])


def test_most_popular_ranks_the_allowed_items(books: Catalogue) -> None:
    put(books, [Item(str(number), str(number), {"odd": number % 2 == 1}, number % 4) for number in range(8)])
    snapshot = books.snapshot()
    allowed = snapshot.filter_mask({"odd": False}, [2])
    assert [snapshot.ids[row] for row in snapshot.most_popular(3, None)] == ["3", "7", "2"]
    assert [snapshot.ids[row] for row in snapshot.most_popular(9, allowed)] == ["6", "0", "4"]


def test_existing_catalogue_is_not_created_again(path: Path) -> None:
    with closing(Catalogue(path)) as books:
        put(books, [Item("1", "Emma")])
        assert not create_catalogue(path, DIGEST, WIDTH, [Item("2", "Dune")], {"2": vector_of("Dune")})
        assert content(books.snapshot()) == {"1": "Emma"}
    assert [item.name for item in path.parent.iterdir()] == ["books"]


def test_removed_catalogue_refuses_edits_even_if_recreated(path: Path) -> None:
    with closing(Catalogue(path)) as books:
        put(books, [Item("1", "Emma")])
        remove_catalogue(path)
        assert books.was_replaced
        with pytest.raises(CatalogueRemovedError):
            put(books, [Item("2", "Dune")])
        create_catalogue(path, DIGEST, WIDTH)
        assert books.was_replaced
        with pytest.raises(CatalogueRemovedError):
            put(books, [Item("2", "Dune")])
    with closing(Catalogue(path)) as successor:
        assert content(successor.snapshot()) == {}
        put(successor, [Item("3", "Ulysses")])
        assert content(successor.snapshot()) == {"3": "Ulysses"}
    assert [item.name for item in path.parent.iterdir()] == ["books"]
    with pytest.raises(CatalogueRemovedError):
        remove_catalogue(path.with_name("none"))


@pytest.mark.parametrize("broken", ["database", "format", "vectors short", "vectors gone"])
def test_broken_catalogue_is_refused_with_one_line(path: Path, broken: str) -> None:
    with closing(Catalogue(path)) as books:
        put(books, [Item("1", "Emma"), Item("2", "Dune")])
    if broken == "database":
        (path / "items.sqlite").write_bytes(b"no database, but long enough to be one" * 100)
    elif broken == "format":
        with closing(sqlite3.connect(path / "items.sqlite")) as database:
            database.execute("UPDATE meta SET format = 99")
            database.commit()
    elif broken == "vectors short":
        (path / "vectors.f32").write_bytes(bytes(WIDTH * 4 + 1))
    else:
        (path / "vectors.f32").unlink()
    with pytest.raises(CatalogueError, match=r"catalogue books: [^\n]+"), closing(Catalogue(path)) as books:
        books.snapshot()


def test_any_json_string_can_be_stored(books: Catalogue) -> None:
    texts = ["", " ", "\x00", "\U0001f600", "a" * 10_000, "'; DROP TABLE items; --", json.dumps({"a": 1})]
    put(books, [Item(f"{index}{text[:3]}", text, {text[:20]: text}) for index, text in enumerate(texts)])
    assert sorted(content(books.snapshot()).values()) == sorted(texts)


def test_a_thousand_items_cost_one_sync(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(os, "fsync", lambda file: calls.append(file))
    with closing(Catalogue(path)) as books:
        put(books, [Item(str(number), str(number)) for number in range(1000)])
        assert len(calls) == 1
