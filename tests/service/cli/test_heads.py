from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli.main import app
from tests.support.tiny_bundle import tiny_intent_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_intent_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def folder(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEED_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HEED_INTENT_BUNDLE", str(bundle))
    return tmp_path / "data"


@pytest.fixture
def head(folder: Path, tmp_path: Path) -> Path:
    """The file of a head for the label set `mine`."""
    rows = [{"text": letter * length, "label": letter} for letter in "xyz" for length in range(3, 11)]
    (tmp_path / "my.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    file = tmp_path / "mine.head.safetensors"
    assert heed("train", "intent", "--label-set", "mine", "--data", tmp_path / "my.jsonl", "--out", file)[0] == 0
    return file


NO_FOLDER = "HEED_DATA_DIR is none: there is no folder for heads and reply sets"


def folder_line(folder: Path) -> str:
    return f"Data folder (HEED_DATA_DIR): {folder}"


def missing_line(kind: str, name: str, folder: Path, held: str) -> str:
    return (
        f"heed: there is no {kind} {name!r} in {folder}, which holds {held}; "
        "if the service has another data folder, name it with --data-dir or HEED_DATA_DIR\n"
    )


def heed(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_a_head_is_added_listed_and_removed(folder: Path, head: Path) -> None:
    code, output = heed("heads", "add", head)
    assert (code, output) == (
        0,
        f"mine: 3 intents. {folder_line(folder)}. A running service with this data folder has it within two seconds.\n",
    )
    assert [path.name for path in folder.iterdir()] == [head.name]
    assert (folder / head.name).read_bytes() == head.read_bytes()
    first, *lines = heed("heads", "list")[1].splitlines()
    assert first == folder_line(folder)
    assert [line.partition(":")[0] for line in lines] == ["digits", "letters", "mine"]
    assert heed("heads", "remove", "mine") == (0, f"mine is removed. {folder_line(folder)}\n")
    assert list(folder.iterdir()) == []


def test_a_failed_copy_leaves_nothing_behind(folder: Path, head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / head.name).mkdir(parents=True)  # a file cannot take the place of a folder
    code, output = heed("heads", "add", head)
    assert (code, output.count("\n")) == (1, 1)
    assert [path.name for path in folder.iterdir()] == [head.name]


def test_the_label_sets_of_the_model_are_not_replaced(folder: Path, bundle: Path) -> None:
    code, output = heed("heads", "add", bundle / "heads" / "letters.head.safetensors")
    assert (code, output.count("\n")) == (1, 1)
    assert "letters is a label set of the model itself" in output


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "../mine", ""])
def test_removing_an_unknown_head_says_what_is_there(folder: Path, head: Path, name: str) -> None:
    assert heed("heads", "remove", name) == (1, missing_line("head", name, folder, "no head"))
    heed("heads", "add", head)
    assert heed("heads", "remove", name) == (1, missing_line("head", name, folder, "mine"))


def test_many_heads_are_not_all_listed_and_another_folder_can_be_named(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for number in range(40):
        (other / f"team-{number}.head.safetensors").touch()
    assert heed("heads", "remove", "team-7") == (1, missing_line("head", "team-7", folder, "no head"))
    code, output = heed("heads", "remove", "team7", "--data-dir", other)
    assert code == 1
    assert f"in {other}, which holds team-7, " in output
    assert " and 32 more; " in output
    assert heed("heads", "remove", "team-7", "--data-dir", other) == (0, f"team-7 is removed. {folder_line(other)}\n")


def test_replies_are_added_listed_and_removed(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "replies.txt"
    file.write_text("aaaa\nbbbb\n", encoding="utf-8")
    assert heed("replies", "add", "support", file)[1].startswith("support: 2 replies.")
    assert heed("replies", "list") == (0, f"{folder_line(folder)}\nsupport: 2 replies\n")
    assert heed("replies", "remove", "sales") == (1, missing_line("reply set", "sales", folder, "support"))
    assert heed("replies", "remove", "support") == (0, f"support is removed. {folder_line(folder)}\n")
    assert heed("replies", "remove", "support")[1] == missing_line("reply set", "support", folder, "no reply set")


@pytest.mark.parametrize("command", [["heads", "remove"], ["replies", "remove"]])
def test_without_a_data_folder_nothing_is_removed(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEED_DATA_DIR", "none")
    monkeypatch.chdir(tmp_path)
    for suffix in (".head.safetensors", ".replies.safetensors"):
        (tmp_path / f"mine{suffix}").touch()
    code, output = heed(*command, "mine")
    assert (code, output) == (2, f"heed: {NO_FOLDER}; name one with --data-dir\n")
    assert len(list(tmp_path.iterdir())) == 2


def test_examples_are_checked_before_a_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEED_INTENT_BUNDLE", str(tmp_path / "none"))
    (tmp_path / "my.jsonl").write_text('{"text": "up"}\n', encoding="utf-8")
    code, output = heed("train", "intent", "--label-set", "mine", "--data", tmp_path / "my.jsonl")
    assert code == 1
    assert output.startswith('heed: my.jsonl line 1: it has no "label"; each line is a JSON object with "text" and')
