"""Another model of recommendations, whose digest differs from that of the tiny one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from models.bundle import Bundle, load_bundle


def make_successor(bundle: Bundle, folder: Path) -> Bundle:
    """Copy the bundle to `folder` as another model by its digest: it reads a token less."""
    shutil.copytree(bundle.path, folder / "recommend")
    manifest = folder / "recommend" / "bundle.json"
    fewer = f'"max_tokens": {bundle.max_tokens - 1}'
    manifest.write_text(re.sub(r'"max_tokens": \d+', fewer, manifest.read_text()))
    return load_bundle(folder / "recommend")
