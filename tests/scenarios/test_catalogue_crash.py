"""Catalogues whose writers are killed or whose disk is full."""

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
from tests.support.killed_writer import DIGEST, MAX_EDITS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EDITS = 200


def test_acknowledged_edits_survive_a_killed_writer_and_no_edit_is_partial(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.killed_writer", str(tmp_path / "books"), str(EDITS), "7"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    edits, kills, interrupted = map(int, done.stdout.split())
    assert edits >= EDITS
    assert kills >= EDITS / (MAX_EDITS + 1)
    assert interrupted > 0  # otherwise no child was killed during a commit


@contextmanager
def limited_file_size(file_bytes: int) -> Iterator[None]:
    """Limit the size of files that this process writes. Larger writes get an error and no signal."""
    _, maximum = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, maximum))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (maximum, maximum))


def put(catalogue: Catalogue, numbers: Iterable[int], width: int) -> None:
    items = [Item(f"item {number}", f"Tea cup {number}", {"number": number}) for number in numbers]
    vectors = {item.item_id: np.full(width, item.attributes["number"], np.float32) for item in items}
    catalogue.edit(DIGEST, items, vectors)


def fill_disk(catalogue: Catalogue, width: int) -> int:
    """Add items until the disk is full, and return how many there are."""
    for count in range(0, 10_000, 10):
        try:
            put(catalogue, range(count, count + 10), width)
        except DiskFullError:
            return count
    raise AssertionError("the disk never filled")


@pytest.mark.parametrize("width", [2, 2_000], ids=["database", "vectors"])
def test_edit_on_a_full_disk_changes_nothing_and_works_once_there_is_room(tmp_path: Path, width: int) -> None:
    path = tmp_path / "books"
    create_catalogue(path, DIGEST, width)
    with closing(Catalogue(path)) as catalogue:
        with limited_file_size(300_000):
            count = fill_disk(catalogue, width)
        assert count > 0
        assert catalogue.snapshot().count == count
        if width == 2_000:  # a failed edit frees the space that it took
            assert (path / "vectors.f32").stat().st_size == count * width * 4
        with limited_file_size(300_000), pytest.raises(DiskFullError):
            put(catalogue, range(count, count + 10), width)
        put(catalogue, range(count, count + 20), width)
        complete = catalogue.snapshot()
    with closing(Catalogue(path)) as reopened:
        snapshot = reopened.snapshot()
    assert snapshot.count == complete.count == count + 20
    for item_id, row in snapshot.row_by_id.items():
        number = snapshot.columns["number"].numbers[row]
        assert f"item {snapshot.vectors[row, 0]:.0f}" == item_id == f"item {number:.0f}"


def test_compaction_or_creation_on_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "books"
    create_catalogue(path, DIGEST, 2_000)
    with closing(Catalogue(path)) as catalogue:
        put(catalogue, range(60), 2_000)
        catalogue.edit(DIGEST, [], {}, [f"item {number}" for number in range(20)])
        with limited_file_size(300_000), pytest.raises(DiskFullError):
            catalogue.compact(min_dead_rows=10)
        assert [file.name for file in path.glob("vectors*")] == ["vectors.f32"]
        assert catalogue.snapshot().rows == 60
        assert catalogue.compact(min_dead_rows=10)
        assert catalogue.snapshot().rows == 40
    items = [Item(str(number), str(number)) for number in range(60)]
    with limited_file_size(300_000), pytest.raises(DiskFullError):
        create_catalogue(
            tmp_path / "other", DIGEST, 2_000, items, {item.item_id: np.ones(2_000, np.float32) for item in items}
        )
    assert [file.name for file in tmp_path.iterdir()] == ["books"]
