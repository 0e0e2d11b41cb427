"""Import of a file of items into a catalogue: read, embed, store."""

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
"""Items that are embedded and stored together."""


class CatalogueEmbedder:
    """The model of one catalogue: it embeds items and indexes them."""

    def __init__(self, name: str, bundle: Bundle) -> None:
        from models.ranking.bundle_files import load_recommender
        from models.runtime.offline import open_text_encoder

        self._name, self._bundle = name, bundle
        self._recommender = load_recommender(bundle)
        self._reader = open_text_encoder(bundle)
        self.width, self.digest = self._recommender.width, bundle.model_digest

    def prepare(self, path: Path) -> None:
        """Create the catalogue if it is missing. The model's own starts with the shipped items.

        Raises CatalogueError.
        """
        from models.catalogue.folder import create_catalogue
        from service.registry.catalogues import copy_own_catalogue

        if self._name == self._recommender.catalogue_name:
            copy_own_catalogue(path, self._bundle, self._recommender)
        else:
            create_catalogue(path, self.digest, self.width)

    def index(self, path: Path, snapshot: Snapshot) -> None:
        """Index a large catalogue, so that a service need not. Raises OSError."""
        from models.catalogue.vector_index import MIN_INDEX_ROWS, load_or_build

        if snapshot.rows > MIN_INDEX_ROWS:
            subspace = self._recommender.query_subspace(snapshot.vectors)
            load_or_build(path, snapshot.file, snapshot.vectors, *subspace)

    def vectors(self, ids: Sequence[str], texts: Sequence[str]) -> dict[str, Vector]:
        from service.registry.catalogues import item_vectors

        return item_vectors(self._recommender, self._name, ids, self._reader.encode_texts(texts)) if ids else {}


def put_items(
    opened: Catalogue, items: Sequence[CatalogueItem], embedder: CatalogueEmbedder, progress: Progress
) -> Iterator[Sequence[str]]:
    """Store items and yield the outcomes of each batch. Unchanged texts are not embedded again."""
    from models.catalogue.errors import VectorsMissingError, check_digest

    snapshot = opened.snapshot()
    check_digest(snapshot.name, snapshot.digest, embedder.digest)
    task = progress.add_task("items", total=len(items))
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        changed = [item for item in batch if not snapshot.has(item.item_id, item.text)]
        entries = [item.to_item() for item in batch]
        while True:
            vectors = embedder.vectors([item.item_id for item in changed], [item.text for item in changed])
            try:
                edited = opened.edit(embedder.digest, entries, vectors)
                break
            except VectorsMissingError:  # another writer changed a text meanwhile
                changed = list(batch)
        progress.advance(task, len(batch))
        yield edited.outcomes


def embed_missing(
    ids: Sequence[str], texts: Sequence[str], embedder: CatalogueEmbedder, progress: Progress
) -> dict[str, tuple[str, Vector]]:
    """Return the text and the vector of each item."""
    task = progress.add_task("items", total=len(ids))
    embedded: dict[str, tuple[str, Vector]] = {}
    for start in range(0, len(ids), BATCH):
        batch_ids, batch_texts = ids[start : start + BATCH], texts[start : start + BATCH]
        vectors = embedder.vectors(batch_ids, batch_texts)
        embedded |= {item_id: (text, vectors[item_id]) for item_id, text in zip(batch_ids, batch_texts, strict=True)}
        progress.advance(task, len(vectors))
    return embedded


def read_items(file: Path) -> tuple[list[CatalogueItem], list[str]]:
    """Return the items of a file, and what is wrong with which line."""
    from models.text.language import has_text
    from service.errors import Problem
    from service.http.validation import parse
    from service.schemas.catalogue import CatalogueItem

    items: list[CatalogueItem] = []
    faults: list[str] = []
    lines: dict[str, int] = {}
    with file.open("rb") as opened:
        for line_number, line in enumerate(opened, 1):
            if not line.strip():
                continue
            try:
                item = parse(CatalogueItem, line)
            except Problem as problem:
                where = f" ({problem.pointer})" if problem.pointer else ""
                faults.append(f"line {line_number}: {problem.detail}{where}")
                continue
            if (first := lines.setdefault(item.item_id, line_number)) != line_number:
                faults.append(f"line {line_number}: the item {item.item_id!r} is in line {first} already")
            elif not has_text(item.text):
                faults.append(f"line {line_number}: the text holds nothing that can be read")
            else:
                items.append(item)
    return items, faults


def progress_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))
