"""Every command in the documents works with the shipped models and gets the printed answer."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs import commands
from tests.docs.commands import Block
from tests.docs.markdown import ROOT, Document, documents
from tests.support.local_service import Service, free_port

DOCUMENTS = documents("README.md", "docs/**/*.md")
# Not in the OpenAPI document.
PAGES_FOR_PEOPLE = {"GET /", "GET /docs", "GET /openapi.json"}
BUNDLES = ROOT / "models" / "bundles"

# Replaces curl: it saves body and status for the test, and waits until a new registration is visible.
CURL = """#!/bin/bash
for attempt in {1..40}; do
    "$REAL_CURL" --silent --show-error --write-out '%{stderr}\\n%{http_code}' "$@" > body 2> status || exit
    code=$(tail -n 1 status)
    [ "$code" = 404 ] && [ "$EXPECTED" != 404 ] || break
    sleep 0.25
done
cat body
echo "$code" >> statuses
"""


class Reader:
    """A reader who types the commands of a page in a private folder."""

    def __init__(self, folder: Path, data: Path, service: Service) -> None:
        self._folder = folder
        self._port = service.port
        programs = folder / ".programs"
        programs.mkdir()
        (programs / "curl").write_text(CURL, encoding="utf-8")
        (programs / "curl").chmod(stat.S_IRWXU)
        path = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        self._environment = {
            **os.environ,
            "PATH": os.pathsep.join(path),
            "HEED_DATA_DIR": str(data),
            "REAL_CURL": shutil.which("curl") or "",
        }

    def run(self, block: Block) -> str:
        """Run a block. Return its fault, or an empty string."""
        script = block.script.replace("127.0.0.1:8000", f"127.0.0.1:{self._port}")
        for environment in (".venv/serve/bin/", ".venv/test/bin/"):
            script = script.replace(f"{environment}heed", "heed")
        statuses, body = self._folder / "statuses", self._folder / "body"
        for path in (statuses, body):
            path.unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self._folder,
            env={**self._environment, "EXPECTED": str(block.status or "")},
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode:
            return f"exit code {done.returncode}: {done.stdout}{done.stderr}"
        codes = statuses.read_text().split() if statuses.exists() else []
        if not all(code[0] == "2" for code in (codes[:-1] if block.status else codes)):
            return f"answered {', '.join(codes)}: {body.read_text(encoding='utf-8')}"
        if block.answer is None:
            return ""
        if len(codes) != 1 or (block.status and codes != [str(block.status)]):
            return f"one answer is printed, but the statuses are {codes}: {done.stdout}"
        return "\n".join(commands.differences(block.answer, json.loads(body.read_text(encoding="utf-8"))))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def service(data: Path) -> Iterator[Service]:
    """The shipped models, as `make serve` starts them."""
    environment = {
        "HEED_DATA_DIR": str(data),
        "HEED_INTENT_BUNDLE": str(BUNDLES / "intent"),
        "HEED_RECOMMEND_BUNDLE": str(BUNDLES / "recommend"),
    }
    started = Service(BUNDLES / "sentiment", free_port(), replicas=1, environment=environment)
    yield started
    started.stop()


@pytest.fixture
def reader(tmp_path: Path, data: Path, service: Service) -> Iterator[Reader]:
    """A reader whose heads, reply sets and catalogues are removed afterwards."""
    before = registered(service)
    yield Reader(tmp_path, data, service)
    for path in data.glob("*.safetensors"):
        path.unlink()
    for name in set(registered(service)["catalogues"]) - set(before["catalogues"]):
        remove = [str(Path(sys.executable).with_name("heed")), "catalogue", "remove", name]
        subprocess.run(remove, env={**os.environ, "HEED_DATA_DIR": str(data)}, check=True, capture_output=True)
    deadline_s = time.monotonic() + 30
    while registered(service) != before:
        assert time.monotonic() < deadline_s, f"{registered(service)} still exists"
        time.sleep(0.2)


def registered(service: Service) -> dict[str, list[str]]:
    """Return the names that requests can use."""
    (intent,) = (model for model in service.client.get("/v1/models").json["models"] if model["task"] == "intent")
    catalogues = service.client.get("/v1/catalogues").json["catalogues"]
    return {
        "label_sets": sorted(intent["label_sets"]),
        "reply_sets": intent["reply_sets"],
        "catalogues": sorted(catalogue["name"] for catalogue in catalogues),
    }


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize(
    "document",
    [page for page in DOCUMENTS if any(fence.language == commands.RUN for fence in page.fences)],
    ids=lambda document: document.name,
)
def test_every_command_of_a_page_gets_the_printed_answer(document: Document, reader: Reader) -> None:
    faults = []
    for block in commands.blocks_of(document):
        if fault := reader.run(block):
            faults.append(f"{document.name}, line {block.line}: {fault}")
    assert not faults, "\n\n".join(faults)


def operations(service: Service) -> set[str]:
    paths = service.client.get("/openapi.json").json["paths"]
    return {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}


def test_the_api_page_lists_exactly_the_routes(service: Service) -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`((?:GET|POST|PUT|DELETE|PATCH) /[^` ]*)`", page))
    assert documented == operations(service) | PAGES_FOR_PEOPLE
