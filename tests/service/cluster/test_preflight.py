"""Checks before a start: each refusal is one line that says what to do."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from service.cluster.local import max_connections
from service.cluster.preflight import ClusterError, check_data_dir, check_open_files


def refusal(folder: Path, *subfolders: str) -> str:
    with pytest.raises(ClusterError) as refused:
        check_data_dir(folder, *subfolders)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"HEED_DATA_DIR={folder}: ")
    assert str(refused.value).endswith("choose another folder, or none to serve without one")
    return str(refused.value)


def test_a_folder_that_exists_or_can_be_made_is_accepted(tmp_path: Path) -> None:
    check_data_dir(tmp_path, "catalogues")
    check_data_dir(tmp_path / "new" / "folder", "catalogues")
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_folder_is_refused() -> None:
    """Not even root can write to /proc."""
    assert "the folder is not writable" in refusal(Path("/proc/heed"))


def test_something_else_than_a_folder_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert f"{tmp_path}/fifo is not a folder" in refusal(tmp_path / "fifo" / "below")
    (tmp_path / "link").symlink_to("nowhere")
    assert f"{tmp_path}/link links to nothing" in refusal(tmp_path / "link")
    (tmp_path / "catalogues").touch()
    assert f"{tmp_path}/catalogues is not a folder" in refusal(tmp_path, "catalogues")
    assert "File name too long" in refusal(tmp_path / ("x" * 300))


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    assert "by this user" in refusal(tmp_path)


def test_too_few_open_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1_024, 10_303))
    with pytest.raises(ClusterError, match=r"may have 10,303 open files.* needs 10,304; .*ulimit -Hn 10304") as refused:
        check_open_files(4_096)
    assert "\n" not in str(refused.value)
    check_open_files(4_000)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1_024, resource.RLIM_INFINITY))
    check_open_files(4_096)


def test_a_limit_that_may_be_raised_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    raised = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: raised.append(limits))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1_024, 4_096))
    check_open_files(4_096)
    assert raised == [(1_024, 10_304)]


def test_the_operator_may_set_the_connections() -> None:
    assert max_connections({}) == 4_096
    assert max_connections({"RAY_SERVE_HAPROXY_MAXCONN": "512"}) == 512
