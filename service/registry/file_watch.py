"""Which files changed since the last look."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from models.prediction.intent_head import IntentHead
from models.prediction.reply_ranker import ReplySet
from models.prediction.tensor_file import ArtifactError

_log = structlog.get_logger(__name__)

Kept = TypeVar("Kept", IntentHead, ReplySet)
Stamp = tuple[int, int, int]


@dataclass(slots=True)
class WatchedFiles(Generic[Kept]):
    """Files of one kind, each loaded when it is new or has changed."""

    suffix: str
    load: Callable[[Path], Kept]
    stamps: dict[Path, Stamp] = field(default_factory=dict)
    loaded: dict[Path, Kept] = field(default_factory=dict)

    def update(self, files: Iterable[Path]) -> bool:
        """Whether anything is different now."""
        named = [path for path in files if path.name.endswith(self.suffix) and path.name[0] != "."]
        found = {path: stamp for path in named if (stamp := stamp_of(path))}
        changed = [path for path, stamp in found.items() if stamp != self.stamps.get(path)]
        gone = [path for path in self.loaded if path not in found]
        self.stamps = found
        for path in gone:
            del self.loaded[path]
        for path in changed:
            try:
                self.loaded[path] = self.load(path)
            except ArtifactError as error:
                _log.error("file cannot be used", reason=str(error))
        return bool(changed or gone)

    def kept(self) -> Iterable[Kept]:
        return self.loaded.values()


def stamp_of(path: Path) -> Stamp | None:
    """Return what changes whenever the file does, or None when there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)
