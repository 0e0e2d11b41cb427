"""The README names everything that a user can set, call or run; nothing rots unseen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from service import errors, settings
from service.settings import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def subclasses(kind: type[errors.Problem]) -> list[type[errors.Problem]]:
    return [found for child in kind.__subclasses__() for found in (child, *subclasses(child))]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_in_the_readme(name: str) -> None:
    assert f"`HEED_{name.upper()}`" in README


@pytest.mark.parametrize("target", re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
def test_every_make_target_is_in_the_readme(target: str) -> None:
    assert f"make {target}" in README


@pytest.mark.parametrize(
    "path", re.findall(r'@app\.get\(\s*"([^"]+)"', (ROOT / "service/api/operations.py").read_text())
)
def test_every_endpoint_of_an_operator_is_in_the_readme(path: str) -> None:
    assert f"`GET {path}`" in README


@pytest.mark.parametrize(
    ("path", "method"),
    [
        (path, method or "POST")
        for file in sorted((ROOT / "service/api").glob("*.py"))
        for path, method in re.findall(r'add_hot_route\(app, "([^"]+)"(?:[^)]*method="([A-Z]+)")?', file.read_text())
    ],
)
def test_every_endpoint_of_a_task_is_in_the_readme(path: str, method: str) -> None:
    assert f"`{method} {path}`" in README


@pytest.mark.parametrize(
    "path", re.findall(r'@app\.get\("([^"]+)"', (ROOT / "service/api/catalogues.py").read_text(encoding="utf-8"))
)
def test_every_endpoint_of_catalogues_is_in_the_readme(path: str) -> None:
    assert f"`GET {path}`" in README


@pytest.mark.parametrize("problem", subclasses(errors.Problem), ids=lambda problem: str(problem.code))
def test_every_error_code_is_in_the_readme(problem: type[errors.Problem]) -> None:
    assert f"`{problem.code}`" in README


def test_every_file_that_a_document_links_to_exists() -> None:
    for document in ROOT.glob("*.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("path", sorted((ROOT / "deploy").glob("serve*.yaml")), ids=lambda path: path.name)
def test_every_serve_config_sets_what_can_be_set(path: Path) -> None:
    (application,) = yaml.safe_load(path.read_text(encoding="utf-8"))["applications"]
    settings.load(**application["args"])
