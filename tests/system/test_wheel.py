"""The wheel contains every module and data file, and serves from another folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.local_service import Client, free_port

ROOT = Path(__file__).parent.parent.parent
EXCLUDED = ("models/bundles/teacher/", "service/web/screenshots/")
# No variable of this shell may lead to the working tree or change a setting.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("HEED_", "PYTHON"))}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def files() -> list[str]:
    """The paths of both packages that git tracks or would add, relative to the repository."""
    listing = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "models", "service", cwd=ROOT)
    return [path for path in listing.splitlines() if (ROOT / path).is_file()]


@pytest.fixture(scope="module")
def wheel(files: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, because a build leaves files in its folder and reuses older ones."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for path in [*files, "pyproject.toml", "LICENSE"]:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, source / path)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation"]
    run(*pip, "--wheel-dir", built, source, cwd=built)
    (wheel_path,) = built.glob("heed-*.whl")
    return wheel_path


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of an environment with the wheel and the libraries of this environment, but not its Heed."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # Python does not follow the .pth files of a folder that a .pth file names: an editable Heed stays out.
    libraries = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (Path(purelib) / "libraries.pth").write_text("\n".join(libraries) + "\n", encoding="utf-8")
    return folder / "bin"


@pytest.fixture
def client(scripts: Path, tmp_path: Path) -> Iterator[Client]:
    """A client of the wheel's `heed serve`, started in an empty folder."""
    port = free_port()
    service = subprocess.Popen(
        [scripts / "heed", "serve", "--port", str(port), "--replicas", "1"],
        cwd=tmp_path,
        env=ENVIRONMENT | {"HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert service.stdout is not None
    try:
        if not any(line.startswith("Ready") for line in service.stdout):
            pytest.fail(f"the service did not start: {service.communicate()[1]}")
        with Client(port) as connected:
            yield connected
    finally:
        service.send_signal(signal.SIGINT)
        service.communicate(timeout=60)


def test_the_wheel_contains_every_file_of_both_packages(wheel: Path, files: list[str]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == {path for path in files if not path.startswith(EXCLUDED)}


def test_pip_refuses_other_versions_of_python(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        assert "\nRequires-Python: <3.12,>=3.11\n" in archive.read(metadata).decode()


def test_the_installed_wheel_is_imported(scripts: Path, tmp_path: Path) -> None:
    code = "import models, service; print(models.__file__, service.__file__, sep='\\n')"
    for module in run(scripts / "python", "-c", code, cwd=tmp_path).splitlines():
        assert Path(module).is_relative_to(scripts.parent)


def test_the_installed_wheel_serves_the_shipped_models(client: Client) -> None:
    for path, item in [
        ("/v1/sentiment", "Shares of Acme plunge after profit warning"),
        ("/v1/intent", "where is my card?"),
        ("/v1/recommend", {"history": [{"text": "Regency cakestand 3 tier", "event": "purchase"}], "top_k": 5}),
    ]:
        reply = client.post({"inputs": item}, path)
        assert reply.status == 200, reply.body
    assert client.get("/").status == 200
    assert client.get("/console/console.js").status == 200
