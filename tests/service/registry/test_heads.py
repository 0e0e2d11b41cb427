from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.bundle import Bundle, load_bundle
from models.prediction.intent_head import save_head
from models.prediction.reply_ranker import ReplySet, save_replies
from models.runtime.offline import open_text_encoder
from service.registry.heads import HeadRegistry
from tests.support.tiny_bundle import WIDTH, tiny_head, tiny_intent_bundle

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_intent_bundle(tmp_path_factory.mktemp("bundle")))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.02)


def place(name: str, starts: str, bundle: Bundle, folder: Path) -> Path:
    path = folder / f"{name}.head.safetensors"
    save_head(tiny_head(name, starts, open_text_encoder(bundle), bundle.encoder_digest), path)
    return path


async def test_a_file_is_served_while_it_is_there(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "later"
    shelf = HeadRegistry(bundle, folder)
    assert sorted(shelf.heads) == ["digits", "letters"]
    await shelf.start()
    folder.mkdir()
    path = place("mine", "xyz", bundle, folder)
    await until(lambda: "mine" in shelf.heads)
    before = shelf.heads
    place("mine", "uvw", bundle, folder)
    await until(lambda: shelf.heads["mine"].labels == ("u", "v", "w"))
    assert before["mine"].labels == ("x", "y", "z")  # who began with it keeps it
    path.unlink()
    await until(lambda: "mine" not in shelf.heads)
    assert sorted(shelf.heads) == ["digits", "letters"]
    await shelf.stop()


async def test_what_cannot_be_used_changes_nothing(bundle: Bundle, tmp_path: Path) -> None:
    path = place("mine", "xyz", bundle, tmp_path)
    shelf = HeadRegistry(bundle, tmp_path)
    await shelf.start()
    served = shelf.heads["mine"]
    path.write_bytes(b"not a head")
    foreign = tiny_head("foreign", "pq", open_text_encoder(bundle), "0" * 64)
    save_head(foreign, tmp_path / "foreign.head.safetensors")
    (tmp_path / ".half.head.safetensors").write_bytes(b"")
    place("good", "rs", bundle, tmp_path)
    await until(lambda: "good" in shelf.heads)
    assert shelf.heads["mine"] is served
    assert sorted(shelf.heads) == ["digits", "good", "letters", "mine"]
    await shelf.stop()


async def test_a_bundles_own_names_stay_its_own(bundle: Bundle, tmp_path: Path) -> None:
    usurper = replace(tiny_head("letters", "xyz", open_text_encoder(bundle), bundle.encoder_digest))
    save_head(usurper, tmp_path / "letters.head.safetensors")
    shelf = HeadRegistry(bundle, tmp_path)
    await shelf.start()
    assert shelf.heads["letters"].labels == ("a", "b", "c")
    await shelf.stop()


async def test_reply_sets_come_and_go_too(bundle: Bundle, tmp_path: Path) -> None:
    shelf = HeadRegistry(bundle, tmp_path)
    await shelf.start()
    placed = shelf.ranker.project_replies(np.eye(WIDTH, dtype=np.float32)[:2])
    path = tmp_path / "mine.replies.safetensors"
    save_replies(ReplySet("mine", bundle.encoder_digest, ("yes", "no"), placed), path)
    await until(lambda: "mine" in shelf.reply_sets)
    path.unlink()
    await until(lambda: not shelf.reply_sets)
    await shelf.stop()
