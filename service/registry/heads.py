"""The heads and reply sets of the intent model, from its bundle and from the data directory.

The registry scans the data directory once per second. So it serves a new file and stops serving a deleted one without
a restart. It replaces its tables atomically, so a request uses one head from start to end. A file that cannot be used
is logged once, and its predecessor stays. The module knows files but not HTTP.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from models.bundle import Bundle
from models.prediction.intent_head import SUFFIX, IntentHead, load_bundle_heads, load_head
from models.prediction.reply_ranker import RANKER, SET_SUFFIX, ReplyRanker, ReplySet, load_ranker, load_replies
from service.registry.file_watch import WatchedFiles

_SCAN_INTERVAL_S = 1.0
_log = structlog.get_logger(__name__)


class HeadRegistry:
    """Heads and reply sets by name. Both dictionaries are replaced as a whole and never changed."""

    def __init__(self, bundle: Bundle, folder: Path | None) -> None:
        self.ranker: ReplyRanker = load_ranker(bundle.path / RANKER)
        rank = self.ranker.reply.shape[1]
        self._bundle_heads = load_bundle_heads(bundle.path, bundle.encoder_digest)
        self._folder = folder
        self._head_files = WatchedFiles(SUFFIX, lambda path: load_head(path, bundle.encoder_digest))
        self._reply_files = WatchedFiles(SET_SUFFIX, lambda path: load_replies(path, bundle.encoder_digest, rank))
        self.heads: dict[str, IntentHead] = self._bundle_heads
        self.reply_sets: dict[str, ReplySet] = {}
        self._fault = ""
        self._scanning: asyncio.Task[None] | None = None

    def scan_heads(self) -> dict[str, IntentHead]:
        """Scan the folder and return the heads of the bundle and of the folder."""
        if self._folder is not None:
            self._scan(self._folder)
        return self.heads

    async def start(self) -> None:
        if self._folder is not None:
            await asyncio.to_thread(self._scan_safely, self._folder)
            self._scanning = asyncio.create_task(self._keep_scanning(self._folder))

    async def stop(self) -> None:
        if self._scanning is not None:
            self._scanning.cancel()

    async def _keep_scanning(self, folder: Path) -> None:
        while True:
            await asyncio.sleep(_SCAN_INTERVAL_S)
            await asyncio.to_thread(self._scan_safely, folder)

    def _scan_safely(self, folder: Path) -> None:
        """Scan the folder. A fault, whatever it is, is told once and ends neither the service nor later scans."""
        fault = ""
        try:
            self._scan(folder)
        except Exception as error:
            fault = (isinstance(error, OSError) and error.strerror) or type(error).__name__
            if fault != self._fault:
                _log.error("folder cannot be read", folder=str(folder), reason=fault)
        if self._fault and not fault:
            _log.info("folder can be read again", folder=str(folder))
        self._fault = fault

    def _scan(self, folder: Path) -> None:
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        if self._head_files.update(files):
            # Heads of the bundle have precedence: a file must not replace "banking77" with another model.
            self.heads = {head.name: head for head in self._head_files.values()} | self._bundle_heads
        if self._reply_files.update(files):
            self.reply_sets = {replies.name: replies for replies in self._reply_files.values()}
