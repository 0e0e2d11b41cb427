"""Errors of catalogues."""

from __future__ import annotations

from collections.abc import Sequence


class CatalogueError(Exception):
    """A catalogue, or an edit of it, is refused. The message is one line."""


class CatalogueRemovedError(CatalogueError):
    """The catalogue was removed, or replaced by another with the same name."""


class OutdatedError(CatalogueError):
    """A different model made the catalogue's vectors. The message names the command that rebuilds them."""


class BusyError(CatalogueError):
    """Other processes held the write lock until the timeout."""


class DiskFullError(CatalogueError):
    """The disk was full. Nothing changed."""


class CatalogueFullError(CatalogueError):
    """An edit would take the catalogue beyond a limit. Nothing changed. `limit` names it: `items` or `bytes`."""

    def __init__(self, name: str, limit: str, needed: int, allowed: int) -> None:
        super().__init__(f"catalogue {name}: it would have {needed:,} {limit}, and the limit is {allowed:,}")
        self.limit = limit


class EditError(CatalogueError):
    """An edit that cannot be stored. Nothing changed."""


class VectorsMissingError(CatalogueError):
    """Items with new texts have no vector. Their IDs are in `ids`, and nothing changed."""

    def __init__(self, ids: Sequence[str]) -> None:
        super().__init__(f"{len(ids)} items have a new text but no vector")
        self.ids = ids


def check_digest(name: str, actual: str, expected: str) -> None:
    """Raise OutdatedError unless the catalogue's digest is the expected one."""
    if actual != expected:
        raise OutdatedError(
            f"catalogue {name}: another model made its vectors ({actual[:12]}, not {expected[:12]}); "
            f"run heed catalogue rebuild {name}"
        )
