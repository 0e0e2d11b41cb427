"""Files that are no regular files: no reader waits for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from models.files import FileTooLargeError, NotRegularError, read_regular, replace_atomically
from tests.support.odd_files import ODD_FILES, make_odd


def test_a_regular_file_and_a_link_to_one_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "file", 7) == read_regular(tmp_path / "link", 7) == b"content"
    with pytest.raises(FileTooLargeError, match="larger than the limit of 6 bytes"):
        read_regular(tmp_path / "file", 6)


@pytest.mark.parametrize("kind", ODD_FILES)
def test_anything_else_is_refused_and_not_opened(kind: str, tmp_path: Path) -> None:
    make_odd(kind, tmp_path / "odd")
    with pytest.raises(NotRegularError, match="odd is not a regular file"):
        read_regular(tmp_path / "odd", 100)


def test_a_fifo_under_the_name_of_the_temporary_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".file.part")
    with replace_atomically(tmp_path / "file") as temporary:
        temporary.write_text("written", encoding="utf-8")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "written"
