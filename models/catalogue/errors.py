"""The error tree of catalogues."""

from __future__ import annotations

from collections.abc import Sequence


class CatalogueError(Exception):
    """A catalogue, or an edit of it, that is refused; the message is one line."""


class CatalogueRemovedError(CatalogueError):
    """The catalogue was removed, or replaced by another of its name."""


class OutdatedError(CatalogueError):
    """Another model made its vectors; the message has the command that makes them again."""


class BusyError(CatalogueError):
    """Others were writing all the time."""


class DiskFullError(CatalogueError):
    """There was no room on the disk; nothing was changed."""


class EditError(CatalogueError):
    """What was to be put in cannot be kept; nothing was changed."""


class VectorsMissingError(CatalogueError):
    """Items whose text is new, by id, were given no vector; nothing was changed."""

    def __init__(self, ids: Sequence[str]) -> None:
        super().__init__(f"{len(ids)} items have a new text and no vector")
        self.ids = ids


def check_digest(name: str, found: str, wanted: str) -> None:
    """Raises OutdatedError."""
    if found != wanted:
        raise OutdatedError(
            f"catalogue {name}: its vectors were made by another model ({found[:12]}, this one is {wanted[:12]}); "
            f"heed catalogue rebuild {name}"
        )
