"""What is installed here is what `requirements/test.txt` says; `make lock` renews that file."""

from __future__ import annotations

import re
from importlib.metadata import distributions
from pathlib import Path
from sysconfig import get_path

import pytest

REQUIREMENTS = Path(__file__).parent.parent / "requirements"
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
