"""A catalogue whose writers are killed, and whose disk fills up."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from models.catalogue.errors import DiskFullError
from models.catalogue.folder import create_catalogue
from models.catalogue.items import Item
from models.catalogue.store import Catalogue
from tests.support.killed_writer import DIGEST, MOST_EDITS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EDITS = 200


def test_what_was_acknowledged_outlives_being_killed_and_nothing_is_there_in_part(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.killed_writer", str(tmp_path / "books"), str(EDITS), "7"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    edits, kills, under_way = map(int, done.stdout.split())
    assert edits >= EDITS
    assert kills >= EDITS / (MOST_EDITS + 1)
    assert under_way > 0  # else no child was killed at a moment that matters


@contextmanager
def room(file_bytes: int) -> Iterator[None]:
    """No file of this process can become larger; what would gets no signal, but an error."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def put(catalogue: Catalogue, numbers: Iterable[int], width: int) -> None:
    entries = [Item(f"item {number}", f"Tea cup {number}", {"number": number}) for number in numbers]
    vectors = {entry.item_id: np.full(width, entry.attributes["number"], np.float32) for entry in entries}
    catalogue.edit(DIGEST, entries, vectors)


def filled(catalogue: Catalogue, width: int) -> int:
    """How many items there was room for."""
    for count in range(0, 10_000, 10):
        try:
            put(catalogue, range(count, count + 10), width)
        except DiskFullError:
            return count
    raise AssertionError("the disk never filled")


@pytest.mark.parametrize("width", [2, 2_000], ids=["of items", "of vectors"])
def test_a_full_disk_changes_nothing_and_all_goes_on_when_there_is_room(tmp_path: Path, width: int) -> None:
    path = tmp_path / "books"
    create_catalogue(path, DIGEST, width)
    with closing(Catalogue(path)) as catalogue:
        with room(300_000):
            count = filled(catalogue, width)
        assert count > 0
        assert catalogue.snapshot().count == count
        if width == 2_000:  # what it took of the disk before that was full is given back
            assert (path / "vectors.f32").stat().st_size == count * width * 4
        with room(300_000), pytest.raises(DiskFullError):
            put(catalogue, range(count, count + 10), width)
        put(catalogue, range(count, count + 20), width)
        whole = catalogue.snapshot()
    with closing(Catalogue(path)) as again:
        found = again.snapshot()
    assert found.count == whole.count == count + 20
    for item_id, row in found.row_by_id.items():
        assert f"item {found.vectors[row, 0]:.0f}" == item_id == f"item {found.columns['number'].numbers[row]:.0f}"


def test_a_disk_that_fills_while_it_is_compacted_or_made_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "books"
    create_catalogue(path, DIGEST, 2_000)
    with closing(Catalogue(path)) as catalogue:
        put(catalogue, range(60), 2_000)
        catalogue.edit(DIGEST, [], {}, [f"item {number}" for number in range(20)])
        with room(300_000), pytest.raises(DiskFullError):
            catalogue.compact(min_dead_rows=10)
        assert [file.name for file in path.glob("vectors*")] == ["vectors.f32"]
        assert catalogue.snapshot().rows == 60
        assert catalogue.compact(min_dead_rows=10)
        assert catalogue.snapshot().rows == 40
    entries = [Item(str(number), str(number)) for number in range(60)]
    with room(300_000), pytest.raises(DiskFullError):
        create_catalogue(
            tmp_path / "other", DIGEST, 2_000, entries, {one.item_id: np.ones(2_000, np.float32) for one in entries}
        )
    assert [file.name for file in tmp_path.iterdir()] == ["books"]
