"""Reads and embeds a file of items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from models.bundle import Bundle
    from models.catalogue.items import Vector
    from models.catalogue.snapshot import Snapshot
    from models.catalogue.store import Catalogue
    from service.schemas.catalogue import CatalogueItem


BATCH = 256
"""Items that are embedded, and become durable, together."""


class Embedder:
    def __init__(self, name: str, bundle: Bundle) -> None:
        from models.ranking.bundle_files import load_recommender
        from models.runtime.offline import open_text_encoder

        self._name, self._bundle = name, bundle
        self._recommender = load_recommender(bundle)
        self._reader = open_text_encoder(bundle)
        self.width, self.digest = self._recommender.width, bundle.model_digest

    def prepare(self, path: Path) -> None:
        """The catalogue to add to: the model's own begins with what is shipped. Raises CatalogueError."""
        from models.catalogue.folder import create_catalogue
        from service.registry.catalogues import copy_own_catalogue

        if self._name == self._recommender.catalogue_name:
            copy_own_catalogue(path, self._bundle, self._recommender)
        else:
            create_catalogue(path, self.digest, self.width)

    def index(self, path: Path, found: Snapshot) -> None:
        """Of a large catalogue, so that a service need not build it. Raises OSError."""
        from models.catalogue.vector_index import MIN_INDEX_ROWS, load_or_build

        if found.rows > MIN_INDEX_ROWS:
            load_or_build(path, found.file, found.vectors, *self._recommender.query_subspace(found.vectors))

    def vectors(self, ids: Sequence[str], texts: Sequence[str]) -> dict[str, Vector]:
        from service.registry.catalogues import item_vectors

        return item_vectors(self._recommender, self._name, ids, self._reader.encode_texts(texts)) if ids else {}


def put_items(
    opened: Catalogue, items: Sequence[CatalogueItem], embedder: Embedder, progress: Progress
) -> Iterator[Sequence[str]]:
    """The outcomes of batch after batch; what is there already is not embedded again."""
    from models.catalogue.errors import VectorsMissingError, check_digest

    there = opened.snapshot()
    check_digest(there.name, there.digest, embedder.digest)
    task = progress.add_task("items", total=len(items))
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        wanted = [item for item in batch if not there.has(item.item_id, item.text)]
        entries = [item.to_item() for item in batch]
        while True:
            vectors = embedder.vectors([item.item_id for item in wanted], [item.text for item in wanted])
            try:
                edited = opened.edit(embedder.digest, entries, vectors)
                break
            except VectorsMissingError:  # someone else changed a text since
                wanted = list(batch)
        progress.advance(task, len(batch))
        yield edited.outcomes


def embed_missing(
    ids: Sequence[str], texts: Sequence[str], embedder: Embedder, progress: Progress
) -> dict[str, tuple[str, Vector]]:
    task = progress.add_task("items", total=len(ids))
    found: dict[str, tuple[str, Vector]] = {}
    for start in range(0, len(ids), BATCH):
        part = slice(start, start + BATCH)
        vectors = embedder.vectors(ids[part], texts[part])
        found |= {item_id: (text, vectors[item_id]) for item_id, text in zip(ids[part], texts[part], strict=True)}
        progress.advance(task, len(vectors))
    return found


def read_items(file: Path) -> tuple[list[CatalogueItem], list[str]]:
    """The items of a file, and what is wrong with which line."""
    from models.text.language import has_text
    from service.errors import Problem
    from service.http.body import parse
    from service.schemas.catalogue import CatalogueItem

    items: list[CatalogueItem] = []
    faults: list[str] = []
    lines: dict[str, int] = {}
    with file.open("rb") as opened:
        for number, line in enumerate(opened, 1):
            if not line.strip():
                continue
            try:
                item = parse(CatalogueItem, line)
            except Problem as problem:
                where = f" ({problem.pointer})" if problem.pointer else ""
                faults.append(f"line {number}: {problem.detail}{where}")
                continue
            if (first := lines.setdefault(item.item_id, number)) != number:
                faults.append(f"line {number}: the item {item.item_id!r} is in line {first} already")
            elif not has_text(item.text):
                faults.append(f"line {number}: the text holds nothing that can be read")
            else:
                items.append(item)
    return items, faults


def progress_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))
