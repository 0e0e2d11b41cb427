"""A catalogue writer that is killed repeatedly: `python -m tests.support.killed_writer FOLDER EDITS SEED`.

A child process makes edits and acknowledges each on a pipe. After a random time it is killed with SIGKILL, and the
catalogue on disk is compared with the acknowledged edits. The interrupted edit must be there completely or not at all.
Prints the number of edits, of kills, and of interrupted edits that were there.
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
MAX_EDITS = 3
FIRST_LIFE_S, STEP = 0.02, 1.1
"""The longest life of the first ready child, in seconds, and the factor by which it changes.

It grows after a child that made no edit, and shrinks after one that did.
"""

Items = dict[str, Item]


def vector_of(text: str) -> Vector:
    return np.random.default_rng(crc32(text.encode())).normal(size=WIDTH).astype(np.float32)


def draw_edit(number: int, seed: int) -> tuple[list[Item], list[str]]:
    rng = random.Random(f"{seed} {number}")
    ids = rng.sample([f"item {index}" for index in range(30)], rng.randint(1, 12))
    count = rng.randint(0, len(ids))
    items = [
        Item(item_id, rng.choice(("Tea cup {}", "茶杯 {}")).format(rng.randint(0, 3)), {"edit": number}, rng.random())
        for item_id in ids[:count]
    ]
    return items, ids[count:]


def apply_edit(items: Items, number: int, seed: int) -> Items:
    edited, removed = draw_edit(number, seed)
    changed = items | {item.item_id: item for item in edited}
    return {item_id: item for item_id, item in changed.items() if item_id not in removed}


def read_items(path: Path) -> Items:
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
    """Make several edits, so that a late kill can still interrupt one."""
    with closing(Catalogue(path)) as catalogue:
        os.write(pipe, b"\n")
        for _ in range(MAX_EDITS):
            items, removed = draw_edit(number, seed)
            vectors: Mapping[str, Vector] = {item.item_id: vector_of(item.text) for item in items}
            catalogue.edit(DIGEST, items, vectors, removed)
            os.write(pipe, b"%d\n" % number)
            number += 1
        signal.pause()


def kill_after(path: Path, number: int, seed: int, seconds: float) -> int:
    """Kill a child that edits from this number on, and return how many edits it acknowledged."""
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
    number = kills = interrupted = 0
    longest_s = FIRST_LIFE_S
    while number < edits:
        acknowledged = kill_after(path, number, seed, rng.uniform(0, longest_s))
        kills += 1
        longest_s *= STEP if not acknowledged else 1 / STEP
        for _ in range(acknowledged):
            items = apply_edit(items, number, seed)
            number += 1
        stored = read_items(path)
        if stored != items:
            items = apply_edit(items, number, seed)
            number += 1
            interrupted += 1
        assert stored == items, f"after {number} edits: {stored} is not {items}"
    print(number, kills, interrupted)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
