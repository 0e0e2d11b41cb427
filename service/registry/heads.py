"""What the intent model is asked with: heads and reply sets, those of its bundle and those of a team's own folder.

The folder is looked at every second, so a file that is placed there is served, and one that is taken away is not,
without a restart; a request keeps what it began with. A file that cannot be used is logged once and what was there
before it stays. Knows files, nothing of HTTP.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from models.bundle import Bundle
from models.prediction.intent_head import SUFFIX, IntentHead, load_bundle_heads, load_head
from models.prediction.reply_ranker import RANKER, SET_SUFFIX, ReplyRanker, ReplySet, load_ranker, load_replies
from service.registry.file_watch import WatchedFiles

_LOOK_S = 1.0
_log = structlog.get_logger(__name__)


class HeadRegistry:
    """`heads` and `reply_sets` are by name; each is replaced as a whole, never changed."""

    def __init__(self, bundle: Bundle, folder: Path | None) -> None:
        self.ranker: ReplyRanker = load_ranker(bundle.path / RANKER)
        self._own = load_bundle_heads(bundle.path, bundle.encoder_digest)
        self._folder = folder
        self._heads = WatchedFiles(SUFFIX, lambda path: load_head(path, bundle.encoder_digest))
        self._replies = WatchedFiles(SET_SUFFIX, lambda path: load_replies(path, bundle.encoder_digest))
        self.heads: dict[str, IntentHead] = self._own
        self.reply_sets: dict[str, ReplySet] = {}
        self._looking: asyncio.Task[None] | None = None

    def all_heads(self) -> dict[str, IntentHead]:
        """Those of the bundle and those that the folder holds now."""
        if self._folder is not None:
            self._look(self._folder)
        return self.heads

    async def start(self) -> None:
        if self._folder is not None:
            self._look(self._folder)
            self._looking = asyncio.create_task(self._keep_looking(self._folder))

    async def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()

    async def _keep_looking(self, folder: Path) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await asyncio.to_thread(self._look, folder)
            except OSError as error:
                _log.error("folder cannot be read", folder=str(folder), error=type(error).__name__)

    def _look(self, folder: Path) -> None:
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        if self._heads.update(files):
            # A bundle's own names stay its own: callers of "banking77" must not get another model by a file.
            self.heads = {head.name: head for head in self._heads.kept()} | self._own
        if self._replies.update(files):
            self.reply_sets = {replies.name: replies for replies in self._replies.kept()}
