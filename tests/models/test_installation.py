"""The requirements of the metadata are those of `pyproject.toml`, and a missing package ends in the command for it."""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from models import installation
from models.installation import (
    EXTRAS,
    MissingPackageError,
    is_installed,
    require_installed,
    requirements_of,
)

PYPROJECT: dict[str, Any] = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]
HERE = f"{sys.executable} -m pip install "


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_every_requirement_of_the_project_is_read(extra: str) -> None:
    written = PYPROJECT["optional-dependencies"][extra] if extra else PYPROJECT["dependencies"]
    assert sorted(requirements_of(extra).values()) == sorted(written)


@pytest.mark.parametrize("extra", ["", "cpu", "train"])
def test_requirements_are_listed_by_the_module_that_they_install(extra: str) -> None:
    """What is installed here. So a package whose module has another name cannot be forgotten."""
    assert not [name for name in requirements_of(extra) if not is_installed(name)]


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = f"serving needs onnxruntime, which is missing; run: {HERE}onnxruntime==1.32.0"
    with pytest.raises(MissingPackageError) as refused:
        require_installed("serving", "numpy", "onnxruntime", extra="cpu")
    assert str(refused.value) == message


def test_all_missing_packages_are_named_at_once_and_quoted_for_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray", "fastapi", "tokenizers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError) as refused:
        require_installed("Heed", *requirements_of())
    assert str(refused.value) == (
        "Heed needs fastapi, ray and tokenizers, which are missing; "
        f"run: {HERE}fastapi==0.165.0 'ray[serve]==2.60.0' tokenizers==0.23.3"
    )


def test_a_folder_that_a_package_left_behind_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leftover" / "capi").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_installed("leftover")


def test_without_metadata_the_module_itself_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_metadata(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installation, "requires", no_metadata)
    assert requirements_of("cpu") == {}
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"pip install onnxruntime$"):
        require_installed("serving", "onnxruntime", extra="cpu")
