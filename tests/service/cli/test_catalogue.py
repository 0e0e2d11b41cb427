from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from models.bundle import Bundle, load_bundle
from models.catalogue.folder import create_catalogue
from models.catalogue.items import Item, Vector
from models.catalogue.snapshot import Snapshot
from models.catalogue.store import Catalogue
from models.ranking.bundle_files import load_recommender
from models.runtime.offline import TextEncoder, open_text_encoder
from service.cli import catalogue_import
from service.cli.main import app
from service.registry.catalogues import item_vectors
from tests.support.successor import make_successor
from tests.support.tiny_bundle import CATALOGUE, CATALOGUE_ITEMS, tiny_recommend_bundle

LINES: list[dict[str, Any]] = [
    {"item_id": "22138", "text": "Baking set 9 piece retrospot", "attributes": {"price": 4.95, "none": None}},
    {"item_id": "茶-3", "text": "手机质量好", "popularity": 12},
    {"item_id": "85123A", "text": "White hanging heart 心"},
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_recommend_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture(scope="module")
def successor(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_successor(bundle, tmp_path_factory.mktemp("successor"))


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEED_DATA_DIR", str(tmp_path / "shelf"))
    return tmp_path / "shelf"


def run(bundle: Bundle | None, *arguments: str) -> tuple[int, str, str]:
    given = () if bundle is None else ("--bundle", str(bundle.path))
    result = CliRunner().invoke(app, ["catalogue", *arguments, *given])
    return result.exit_code, result.stdout, result.stderr


def folder_line(shelf: Path) -> str:
    return f"Data folder (HEED_DATA_DIR): {shelf}"


def missing_line(name: str, shelf: Path, held: str) -> str:
    return (
        f"heed: there is no catalogue {name!r} in {shelf / 'catalogues'}, which holds {held}; "
        "if the service has another data folder, name it with --data-dir or HEED_DATA_DIR\n"
    )


def written(folder: Path, lines: Iterable[object]) -> Path:
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def found(shelf: Path, name: str) -> Snapshot:
    with closing(Catalogue(shelf / "catalogues" / name)) as catalogue:
        return catalogue.snapshot()


@pytest.mark.slow
def test_a_file_becomes_a_catalogue(bundle: Bundle, shelf: Path, tmp_path: Path) -> None:
    code, said, _ = run(bundle, "add", "books", str(written(tmp_path, LINES)))
    outcome = "books: 3 added, 0 changed, 0 unchanged; 3 items."
    assert (code, said) == (
        0,
        f"{outcome} {folder_line(shelf)}. A running service with this data folder has them now.\n",
    )
    books = found(shelf, "books")
    assert [books.ids[row] for row in books.most_popular(1, None)] == ["茶-3"]
    assert books.filter_mask({"price": {"lt": 5}}).sum() == 1  # type: ignore[union-attr]
    texts = [line["text"] for line in LINES]
    expected = load_recommender(bundle).item_vectors(open_text_encoder(bundle).encode_texts(texts), [None] * 3)
    np.testing.assert_allclose(books.vectors, expected, atol=1e-5)


def test_what_is_there_is_not_embedded_again(
    bundle: Bundle, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(bundle, "add", "books", str(written(tmp_path, LINES)))
    read: list[str] = []
    embed = TextEncoder.encode_texts

    def texts(self: TextEncoder, rows: Sequence[str]) -> Vector:
        read.extend(rows)
        return embed(self, rows)

    monkeypatch.setattr(TextEncoder, "encode_texts", texts)
    lines = [
        LINES[0] | {"popularity": 3},
        LINES[1],
        LINES[2] | {"text": "Black heart"},
        {"item_id": "n", "text": "new"},
    ]
    code, said, _ = run(bundle, "add", "books", str(written(tmp_path, lines)))
    assert code == 0
    assert said.startswith("books: 1 added, 2 changed, 1 unchanged; 4 items.")
    assert sorted(read) == ["Black heart", "new"]


def test_lines_that_cannot_be_used_are_named_and_left_out(bundle: Bundle, shelf: Path, tmp_path: Path) -> None:
    path = written(tmp_path, LINES[:2])
    with path.open("ab") as file:
        for line in (
            b"\n",
            b"{not json}\n",
            b'{"item_id": "1"}\n',
            b'{"item_id": "2", "text": "  "}\n',
            b'{"item_id": "22138", "text": "again"}\n',
            b'{"item_id": "3", "text": "\xff"}\n',
            b'{"item_id": "4", "text": "a", "popularity": NaN}\n',
            b'{"item_id": "5", "text": "a", "attributes": {"price": {"euro": 3}}}\n',
            b'["item_id"]\n',
            b'{"item_id": "last", "text": "good"}',
        ):
            file.write(line)
    code, said, complaints = run(bundle, "add", "books", str(path))
    assert code == 1
    assert said.startswith("books: 3 added")
    assert sorted(found(shelf, "books").row_by_id) == sorted(["22138", "茶-3", "last"])
    numbers = [line.split(":")[1] for line in complaints.splitlines() if "items.jsonl, line" in line]
    assert numbers == [f" items.jsonl, line {number}" for number in range(4, 12)]
    assert "line 7: the item '22138' is in line 1 already" in complaints
    assert "8 lines of items.jsonl were skipped" in complaints


def started(bundle: Bundle, path: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "service.cli.main",
        "catalogue",
        "add",
        "books",
        str(path),
        "--bundle",
        str(bundle.path),
    ]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_it_goes_on_when_it_is_run_again(
    bundle: Bundle, shelf: Path, tmp_path: Path, number: signal.Signals
) -> None:
    lines = [{"item_id": str(one), "text": f"{one} " * (one % 30 + 1)} for one in range(3_000)]
    path = written(tmp_path, lines)
    with started(bundle, path) as adding:
        deadline_s = time.monotonic() + 120
        while not (shelf / "catalogues" / "books" / "items.sqlite").is_file() or not found(shelf, "books").count:
            assert time.monotonic() < deadline_s
            assert adding.poll() is None
            time.sleep(0.01)
        os.kill(adding.pid, number)
        _, complaints = adding.communicate(timeout=60)
    kept = found(shelf, "books").count
    assert 0 < kept < len(lines)
    assert kept % catalogue_import.BATCH == 0
    if number == signal.SIGINT:
        assert adding.returncode == 130
        assert "run it again to go on" in complaints
    code, said, _ = run(bundle, "add", "books", str(path))
    assert code == 0
    assert said.startswith(f"books: {len(lines) - kept} added, 0 changed, {kept} unchanged; {len(lines)} items.")


def test_catalogues_are_listed_with_what_is_wrong_with_them(
    bundle: Bundle, successor: Bundle, shelf: Path, tmp_path: Path
) -> None:
    run(bundle, "add", "books", str(written(tmp_path, LINES)))
    run(successor, "add", "other", str(written(tmp_path, LINES)))
    create_catalogue(shelf / "catalogues" / "broken", bundle.model_digest, 4)
    (shelf / "catalogues" / "broken" / "items.sqlite").write_bytes(b"no database" * 1000)
    code, said, complaints = run(bundle, "list")
    assert complaints == f"{folder_line(shelf)}\n"
    lines = said.splitlines()
    assert (code, lines[0]) == (0, "books: 3 items, 1 edits")
    assert lines[1].startswith("not usable: catalogue broken")
    assert lines[2].startswith("not usable: catalogue other")
    assert lines[2].endswith("heed catalogue rebuild other")


def test_a_catalogue_of_another_model_is_refused_until_it_is_rebuilt(
    bundle: Bundle, successor: Bundle, shelf: Path, tmp_path: Path
) -> None:
    path = str(written(tmp_path, LINES))
    run(bundle, "add", "books", path)
    code, _, complaints = run(successor, "add", "books", path)
    assert code == 1
    assert "heed catalogue rebuild books" in complaints
    before = found(shelf, "books")
    code, said, _ = run(successor, "rebuild", "books")
    assert (code, said) == (
        0,
        f"books: 3 items embedded again. {folder_line(shelf)}. "
        "A running service with this data folder and this model has them now.\n",
    )
    after = found(shelf, "books")
    assert (after.digest, after.row_by_id) == (successor.model_digest, before.row_by_id)
    np.testing.assert_allclose(after.vectors, before.vectors, atol=1e-5)
    assert run(successor, "rebuild", "books")[1] == "books was embedded with this model already.\n"
    assert run(successor, "add", "books", path)[1].startswith("books: 0 added, 0 changed, 3 unchanged")


def test_what_is_edited_during_a_rebuild_is_kept(
    bundle: Bundle, successor: Bundle, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(bundle, "add", "books", str(written(tmp_path, LINES)))
    renew = Catalogue.replace_vectors
    recommender, reader = load_recommender(bundle), open_text_encoder(bundle)
    edits = iter([([Item("22138", "changed")], []), ([Item("new", "added")], ["85123A"])])

    def disturbed(self: Catalogue, digest: str, width: int, made: Mapping[str, tuple[str, Vector]]) -> None:
        for entries, removed in edits:
            texts = reader.encode_texts([entry.text for entry in entries])
            vectors = item_vectors(recommender, "books", [entry.item_id for entry in entries], texts)
            self.edit(bundle.model_digest, entries, vectors, removed)
            break
        renew(self, digest, width, made)

    monkeypatch.setattr(Catalogue, "replace_vectors", disturbed)
    assert run(successor, "rebuild", "books")[0] == 0
    after = found(shelf, "books")
    texts = {item_id: after.texts[row] for item_id, row in after.row_by_id.items()}
    assert texts == {"22138": "changed", "new": "added", "茶-3": LINES[1]["text"]}
    expected = recommender.item_vectors(reader.encode_texts(list(texts.values())), [None] * 3)
    np.testing.assert_allclose(after.vectors[list(after.row_by_id.values())], expected, atol=1e-5)


def test_the_models_own_catalogue_is_added_to_as_it_is_shipped_and_ids_count_in_it(
    bundle: Bundle, shelf: Path, tmp_path: Path
) -> None:
    items = [{"item_id": CATALOGUE_ITEMS[0].item_id, "text": "xyz"}, {"item_id": "new", "text": "xyz"}]
    for name in (CATALOGUE, "books"):
        code, said, _ = run(bundle, "add", name, str(written(tmp_path, items)))
        assert code == 0
    assert said.startswith("books: 2 added, 0 changed")
    own, books = found(shelf, CATALOGUE), found(shelf, "books")
    assert (own.count, books.count) == (len(CATALOGUE_ITEMS) + 1, 2)
    vectors = own.vectors[[own.row_by_id["new"], own.row_by_id[CATALOGUE_ITEMS[0].item_id]]]
    assert not np.allclose(vectors[0], vectors[1])
    np.testing.assert_allclose(books.vectors[0], books.vectors[1])
    np.testing.assert_allclose(vectors[0], books.vectors[0], atol=1e-6)


def test_a_catalogue_is_removed(bundle: Bundle, shelf: Path, tmp_path: Path) -> None:
    run(bundle, "add", "books", str(written(tmp_path, LINES)))
    assert run(None, "remove", "books")[:2] == (0, f"books is removed. {folder_line(shelf)}\n")
    assert list((shelf / "catalogues").iterdir()) == []
    for name in ("books", "../books", ""):
        for outcome in (run(None, "remove", name), run(bundle, "rebuild", name)):
            assert outcome == (1, "", missing_line(name, shelf, "no catalogue"))


def test_a_missing_catalogue_names_the_folder_and_those_that_are_like_it(bundle: Bundle, shelf: Path) -> None:
    for name in ("shop", "books", *(f"team-{letter}" for letter in "abcdefgh")):
        create_catalogue(shelf / "catalogues" / name, bundle.model_digest, 4)
    held = "books, shop, team-a, team-b, team-c, team-d, team-e, team-f and 2 more"
    assert run(None, "remove", "book") == (1, "", missing_line("book", shelf, held))
    assert len(list((shelf / "catalogues").iterdir())) == 10


def test_what_cannot_work_is_refused_before_anything_is_read(
    bundle: Bundle, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(written(tmp_path, LINES))
    assert run(bundle, "add", "../books", path)[0] == 2
    assert run(bundle, "add", "books", str(tmp_path / "none.jsonl"))[0] == 2
    monkeypatch.setenv("HEED_RECOMMEND_BUNDLE", "none")
    assert "HEED_RECOMMEND_BUNDLE is none" in run(None, "add", "books", path)[2]
    monkeypatch.setenv("HEED_DATA_DIR", "none")
    assert "HEED_DATA_DIR is none" in run(bundle, "add", "books", path)[2]
    assert not shelf.exists()


def test_a_large_catalogue_is_indexed_before_a_service_needs_it(
    bundle: Bundle, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.catalogue.vector_index.MIN_INDEX_ROWS", len(LINES) - 1)
    assert run(bundle, "add", "books", str(written(tmp_path, LINES)))[0] == 0
    assert (shelf / "catalogues" / "books" / "vectors.f32.index").is_file()
