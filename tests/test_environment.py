"""What is installed here is what `requirements/test.txt` says; `make lock` renews that file."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from sysconfig import get_path

import pytest

ROOT = Path(__file__).parent.parent
REQUIREMENTS = ROOT / "requirements"
# pip comes with Python. A build of torch for CUDA pins its libraries itself.
UNLISTED = r"heed|pip|triton|(nvidia|cuda)-.*"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def listed(name: str) -> dict[str, str]:
    """Return the version of each distribution in a file of constraints."""
    lines = (REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if not line.lstrip().startswith("#"))
    return {canonical(distribution): version for distribution, version in pairs}


def test_every_installed_distribution_has_its_listed_version() -> None:
    # Of this environment alone: Ray puts packages of its own on `sys.path` when it is imported.
    site_packages = sorted({get_path("purelib"), get_path("platlib")})
    installed = {canonical(found.name): found.version.partition("+")[0] for found in distributions(path=site_packages)}
    ours = {name: version for name, version in installed.items() if not re.fullmatch(UNLISTED, name)}
    assert ours.items() <= listed("test").items()


@pytest.mark.parametrize("name", ["serve", "gpu"])
def test_environments_agree_on_the_versions_that_they_share(name: str) -> None:
    tested = listed("test")
    assert all(version == tested[shared] for shared, version in listed(name).items() if shared in tested)


@pytest.mark.parametrize("name", ["serve", "test", "gpu"])
def test_constraints_fit_every_machine(name: str) -> None:
    """No line names a build, an index or a folder."""
    assert all(re.fullmatch(r"[\w.]+", version) for version in listed(name).values())


@pytest.mark.parametrize(
    ("page", "statement"),
    [
        ("README.md", "**Python 3.11**"),
        ("docs/deployment.md", "Python 3.11"),
        ("requirements/environments.mk", "sys.version_info[:2] != (3, 11)"),
        ("Makefile", "python3.11"),
        ("Dockerfile", "FROM python:3.11-slim AS run"),
    ],
)
def test_the_supported_python_is_the_same_everywhere(page: str, statement: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11,<3.12"
    assert statement in (ROOT / page).read_text(encoding="utf-8")


OTHER_PYTHON = f"""#!/bin/sh
[ $1 = --version ] && exec echo Python {{version}}
[ $1 = -c ] && exec {sys.executable} -c "import sys; sys.version_info = ({{tuple}}); exec(sys.argv[1])" "$2"
"""
"""This Python, which claims to be of another version, as a script."""


@pytest.mark.parametrize(
    ("version", "named"),
    [
        ("3.10.12", "is Python 3.10.12. "),
        ("3.13.1", "is Python 3.13.1. "),
        (None, "is missing. "),
    ],
)
@pytest.mark.parametrize("target", ["serve", "test"])
def test_make_refuses_another_python_with_one_line(
    target: str, version: str | None, named: str, tmp_path: Path
) -> None:
    """In a fresh clone, where no environment exists. The line names the version and what to run."""
    for name in ("Makefile", "pyproject.toml", "requirements", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    python = tmp_path / "python"
    if version is not None:
        python.write_text(OTHER_PYTHON.format(version=version, tuple=version.replace(".", ",")), encoding="utf-8")
        python.chmod(0o755)
    done = subprocess.run(
        ["make", target],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(python)},
        capture_output=True,
        text=True,
    )
    line, *rest = done.stderr.splitlines()
    assert line.startswith(f"Heed needs Python 3.11 with venv, and {python} {named}")
    assert line.endswith(f"run: PYTHON=/path/to/python3.11 make {target}")
    assert (done.stdout, len(rest)) == ("", 1)  # make adds that the target failed
    assert not (tmp_path / ".venv").exists()
