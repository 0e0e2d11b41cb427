"""Detection of files that changed since the last scan."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from models.prediction.intent_head import IntentHead
from models.prediction.reply_ranker import ReplySet
from models.prediction.tensor_file import ArtifactError

_log = structlog.get_logger(__name__)

Loaded = TypeVar("Loaded", IntentHead, ReplySet)
Stamp = tuple[int, int, int]


@dataclass(slots=True)
class WatchedFiles(Generic[Loaded]):
    """Files with the same suffix, each loaded when it is new or has changed."""

    suffix: str
    load: Callable[[Path], Loaded]
    stamps: dict[Path, Stamp] = field(default_factory=dict)
    loaded: dict[Path, Loaded] = field(default_factory=dict)

    def update(self, files: Iterable[Path]) -> bool:
        """Load new and changed files, forget missing ones, and return whether anything changed.

        A file that cannot be used is logged, and its predecessor stays.
        """
        matching = [path for path in files if path.name.endswith(self.suffix) and path.name[0] != "."]
        stamps = {path: stamp for path in matching if (stamp := _stamp_of_any(path))}
        changed = [path for path, stamp in stamps.items() if stamp != self.stamps.get(path)]
        gone = [path for path in self.loaded if path not in stamps]
        previous, self.stamps = self.stamps, stamps
        for path in gone:
            del self.loaded[path]
            _log.info("file removed", file=path.name, once=("removed", str(path), previous[path]))
        for path in changed:
            try:
                self.loaded[path] = self.load(path)
            except (ArtifactError, OSError) as error:  # one file must not keep the others out of service
                reason = str(error)
                _log.error("file cannot be used", file=path.name, reason=reason, once=(str(path), stamps[path], reason))
            else:
                _log.info("file loaded", file=path.name, once=(str(path), stamps[path]))
        return bool(changed or gone)

    def values(self) -> Iterable[Loaded]:
        """Return what was loaded from the files."""
        return self.loaded.values()


def _stamp_of_any(path: Path) -> Stamp | None:
    """Return the stamp of a file, or of whatever else has its name, whose times do not count: it is told once."""
    try:
        status = path.lstat() if path.is_symlink() and not path.exists() else path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return (0, 0, status.st_ino)
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def stamp_of(path: Path) -> Stamp | None:
    """Return a value that changes whenever the file does, or None if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)
