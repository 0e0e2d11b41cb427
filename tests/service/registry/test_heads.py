from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from models.bundle import Bundle, load_bundle
from models.prediction.intent_head import save_head
from models.prediction.reply_ranker import ReplySet, save_replies
from models.runtime.offline import open_text_encoder
from service.registry.heads import HeadRegistry
from tests.support.odd_files import ODD_FILES, make_odd
from tests.support.tiny_bundle import WIDTH, tiny_head, tiny_intent_bundle

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_intent_bundle(tmp_path_factory.mktemp("bundle")))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


def write_head(name: str, starts: str, bundle: Bundle, folder: Path) -> Path:
    path = folder / f"{name}.head.safetensors"
    save_head(tiny_head(name, starts, open_text_encoder(bundle), bundle.encoder_digest), path)
    return path


@pytest.mark.slow
async def test_a_head_is_served_while_its_file_exists(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "later"
    registry = HeadRegistry(bundle, folder)
    assert sorted(registry.heads) == ["digits", "letters"]
    await registry.start()
    folder.mkdir()
    path = write_head("mine", "xyz", bundle, folder)
    await until(lambda: "mine" in registry.heads)
    before = registry.heads
    write_head("mine", "uvw", bundle, folder)
    await until(lambda: registry.heads["mine"].labels == ("u", "v", "w"))
    assert before["mine"].labels == ("x", "y", "z")  # a request that began with it is not affected
    path.unlink()
    await until(lambda: "mine" not in registry.heads)
    assert sorted(registry.heads) == ["digits", "letters"]
    await registry.stop()


@pytest.mark.slow
async def test_unusable_files_change_nothing(bundle: Bundle, tmp_path: Path) -> None:
    path = write_head("mine", "xyz", bundle, tmp_path)
    registry = HeadRegistry(bundle, tmp_path)
    await registry.start()
    served = registry.heads["mine"]
    path.write_bytes(b"not a head")
    foreign = tiny_head("foreign", "pq", open_text_encoder(bundle), "0" * 64)
    save_head(foreign, tmp_path / "foreign.head.safetensors")
    (tmp_path / ".half.head.safetensors").write_bytes(b"")
    write_head("good", "rs", bundle, tmp_path)
    await until(lambda: "good" in registry.heads)
    assert registry.heads["mine"] is served
    assert sorted(registry.heads) == ["digits", "good", "letters", "mine"]
    await registry.stop()


async def test_a_broken_file_is_logged_once_for_each_state(bundle: Bundle, tmp_path: Path) -> None:
    head, replies = tmp_path / "mine.head.safetensors", tmp_path / "mine.replies.safetensors"
    head.write_bytes(b"not a head")
    replies.write_bytes(b"no replies")
    registry = HeadRegistry(bundle, tmp_path)
    with capture_logs() as records:
        for _ in range(3):
            registry.scan_heads()
        write_head("mine", "xyz", bundle, tmp_path)
        registry.scan_heads()
        head.unlink()
        registry.scan_heads()
    assert [(record["event"], record["file"]) for record in records] == [
        ("file cannot be used", head.name),
        ("file cannot be used", replies.name),
        ("file loaded", head.name),
        ("file removed", head.name),
    ]
    assert all(record["reason"] and record["once"] for record in records[:2])


@pytest.mark.slow
async def test_a_folder_that_cannot_be_read_is_logged_once(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.registry.heads._SCAN_INTERVAL_S", 0.01)
    registry = HeadRegistry(bundle, tmp_path)
    scans: list[OSError | None] = [PermissionError(13, "Permission denied")] * 3 + [None]

    def scan(_: Path) -> None:
        if scans and (fault := scans.pop(0)) is not None:
            raise fault

    with capture_logs() as records:
        await registry.start()
        monkeypatch.setattr(registry, "_scan", scan)
        async with asyncio.timeout(60):
            while scans:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        await registry.stop()
    assert [record["event"] for record in records] == ["folder cannot be read", "folder can be read again"]
    assert records[0]["reason"] == "Permission denied"


async def test_a_file_cannot_replace_a_head_of_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    head = replace(tiny_head("letters", "xyz", open_text_encoder(bundle), bundle.encoder_digest))
    save_head(head, tmp_path / "letters.head.safetensors")
    registry = HeadRegistry(bundle, tmp_path)
    await registry.start()
    assert registry.heads["letters"].labels == ("a", "b", "c")
    await registry.stop()


@pytest.mark.slow
async def test_a_reply_set_is_served_while_its_file_exists(bundle: Bundle, tmp_path: Path) -> None:
    registry = HeadRegistry(bundle, tmp_path)
    await registry.start()
    projected = registry.ranker.project_replies(np.eye(WIDTH, dtype=np.float32)[:2])
    path = tmp_path / "mine.replies.safetensors"
    save_replies(ReplySet("mine", bundle.encoder_digest, ("yes", "no"), projected), path)
    await until(lambda: "mine" in registry.reply_sets)
    path.unlink()
    await until(lambda: not registry.reply_sets)
    await registry.stop()


@pytest.mark.parametrize("suffix", [".head.safetensors", ".replies.safetensors"])
@pytest.mark.parametrize("kind", ODD_FILES)
def test_a_thing_that_is_no_file_is_left_out_and_told_once(
    bundle: Bundle, kind: str, suffix: str, tmp_path: Path
) -> None:
    make_odd(kind, tmp_path / f"odd{suffix}")
    registry = HeadRegistry(bundle, tmp_path)
    with capture_logs() as logs:
        registry.scan_heads()
        if kind == "folder":
            (tmp_path / f"odd{suffix}" / "new").touch()
        assert sorted(registry.scan_heads()) == ["digits", "letters"]
    reason = f"odd{suffix}: it cannot be read (odd{suffix} is not a regular file)"
    assert [line["reason"] for line in logs] == [reason]
    assert not registry.reply_sets


def test_a_link_to_nothing_is_told_once(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "mine.head.safetensors").symlink_to("nowhere")
    registry = HeadRegistry(bundle, tmp_path)
    with capture_logs() as logs:
        registry.scan_heads()
        registry.scan_heads()
    assert len(logs) == 1


async def test_no_fault_of_a_scan_ends_the_scanning(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> Iterator[Path]:
        raise PermissionError(path)

    monkeypatch.setattr(Path, "iterdir", fail)
    monkeypatch.setattr("service.registry.heads._SCAN_INTERVAL_S", 0.01)
    registry = HeadRegistry(bundle, tmp_path)
    with capture_logs() as logs:
        await registry.start()
        await asyncio.sleep(0.2)
    assert [line["event"] for line in logs] == ["folder cannot be read"]
    monkeypatch.undo()
    monkeypatch.setattr("service.registry.heads._SCAN_INTERVAL_S", 0.01)
    projected = registry.ranker.project_replies(np.eye(WIDTH, dtype=np.float32)[:1])
    save_replies(ReplySet("mine", bundle.encoder_digest, ("yes",), projected), tmp_path / "mine.replies.safetensors")
    await until(lambda: "mine" in registry.reply_sets)
    await registry.stop()


def test_a_reply_set_of_another_rank_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    save_replies(
        ReplySet("mine", bundle.encoder_digest, ("a",), np.eye(3, dtype=np.float32)[:1]),
        tmp_path / "mine.replies.safetensors",
    )
    registry = HeadRegistry(bundle, tmp_path)
    registry.scan_heads()
    assert not registry.reply_sets
