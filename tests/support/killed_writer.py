"""Edits of a catalogue by a process that is killed again and again: `python -m tests.support.killed_writer FOLDER
EDITS SEED`.

A child makes one edit after the other and acknowledges each on a pipe; after a random time it is killed with SIGKILL,
and what is on disk is compared with what was acknowledged. The edit that was under way is there as a whole or not at
all. Prints how many edits and kills there were, and how often the one under way was there.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from zlib import crc32

import numpy as np

from models.catalogue.folder import create_catalogue
from models.catalogue.items import Item, Vector
from models.catalogue.store import Catalogue

DIGEST, WIDTH = "a" * 64, 24
MOST_EDITS = 3
FIRST_S, STEP = 0.02, 1.1
"""How long a child lives at most, from when it is ready; more after one that made no edit, less after one that did."""

Items = dict[str, Item]


def vector_of(text: str) -> Vector:
    return np.random.default_rng(crc32(text.encode())).normal(size=WIDTH).astype(np.float32)


def edit_of(number: int, seed: int) -> tuple[list[Item], list[str]]:
    rng = random.Random(f"{seed} {number}")
    ids = rng.sample([f"item {one}" for one in range(30)], rng.randint(1, 12))
    kept = rng.randint(0, len(ids))
    entries = [
        Item(item_id, rng.choice(("Tea cup {}", "茶杯 {}")).format(rng.randint(0, 3)), {"edit": number}, rng.random())
        for item_id in ids[:kept]
    ]
    return entries, ids[kept:]


def after(items: Items, number: int, seed: int) -> Items:
    entries, removed = edit_of(number, seed)
    changed = items | {entry.item_id: entry for entry in entries}
    return {item_id: entry for item_id, entry in changed.items() if item_id not in removed}


def found(path: Path) -> Items:
    with closing(Catalogue(path)) as catalogue:
        snapshot = catalogue.snapshot()
    items: Items = {}
    for item_id, row in snapshot.row_by_id.items():
        text = snapshot.texts[row]
        np.testing.assert_array_equal(snapshot.vectors[row], vector_of(text))
        edit = int(snapshot.columns["edit"].numbers[row])
        items[item_id] = Item(item_id, text, {"edit": edit}, float(snapshot.popularity[row]))
    return items


def edit_and_wait(path: Path, number: int, seed: int, pipe: int) -> None:
    """A few edits, so that a killer who comes late does not find all of them done."""
    with closing(Catalogue(path)) as catalogue:
        os.write(pipe, b"\n")
        for _ in range(MOST_EDITS):
            entries, removed = edit_of(number, seed)
            vectors: Mapping[str, Vector] = {entry.item_id: vector_of(entry.text) for entry in entries}
            catalogue.edit(DIGEST, entries, vectors, removed)
            os.write(pipe, b"%d\n" % number)
            number += 1
        signal.pause()


def killed_after(path: Path, number: int, seed: int, seconds: float) -> int:
    """How many edits, from this number on, a child acknowledged before it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            edit_and_wait(path, number, seed, writing)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as acknowledged:
        acknowledged.readline()
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        lines = acknowledged.read().split()
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert [int(line) for line in lines] == list(range(number, number + len(lines)))
    return len(lines)


def main(path: Path, edits: int, seed: int) -> None:
    create_catalogue(path, DIGEST, WIDTH)
    rng = random.Random(seed)
    items: Items = {}
    number = kills = under_way = 0
    longest_s = FIRST_S
    while number < edits:
        acknowledged = killed_after(path, number, seed, rng.uniform(0, longest_s))
        kills += 1
        longest_s *= STEP if not acknowledged else 1 / STEP
        for _ in range(acknowledged):
            items = after(items, number, seed)
            number += 1
        there = found(path)
        if there != items:
            items = after(items, number, seed)
            number += 1
            under_way += 1
        assert there == items, f"after {number} edits: {there} is not {items}"
    print(number, kills, under_way)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
