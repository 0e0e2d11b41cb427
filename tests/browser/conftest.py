"""A browser, pages of it in which nothing may go wrong, and services in this process for them to show.

Needs Chromium (Debian: `apt-get install chromium`); without it these tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from fastapi import FastAPI
from prometheus_client import values

from models.bundle import load_bundle
from models.runtime.onnx import OnnxRuntime
from models.text.tokenizer import Tokenizer
from service.inference.engine import Engine
from service.telemetry.metrics import Metrics
from tests.support import fake_model as fakes

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def counting(folder: Path) -> Iterator[Metrics]:
    """Metrics in the folder; what they set for the whole process is set back afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "ValueClass", values.ValueClass)
        patch.setenv("PROMETHEUS_MULTIPROC_DIR", os.environ.get("PROMETHEUS_MULTIPROC_DIR", ""))
        yield Metrics(folder / "metrics")


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The address of the application, once it is ready."""
    port = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, args=([port],))
    thread.start()
    found = f"http://127.0.0.1:{port.getsockname()[1]}"
    until_ready(found)
    yield found
    server.should_exit = True
    thread.join(60)
    port.close()


def engine(path: Path, metrics: Metrics) -> Engine:
    bundle = load_bundle(path)
    tokenizer = Tokenizer(bundle.tokenizer, bundle.max_tokens)
    return Engine(bundle, tokenizer, OnnxRuntime(bundle.graph), fakes.LIMITS, metrics.task(bundle.task.name))


def until_ready(address: str) -> None:
    give_up_s = time.monotonic() + 120
    while time.monotonic() < give_up_s:
        try:
            if httpx.get(f"{address}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError("the service did not start")


def serious_faults(page: Any) -> list[tuple[str, list[str]]]:
    """What axe holds against the page as it is, and where."""
    found = Axe().run(page).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    return [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in serious]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A fresh page that has asked nobody but the service, and in which nothing went wrong, when the test is over."""
    context = browser.new_context(base_url=address)
    fresh = context.new_page()
    fresh.set_default_timeout(60_000)
    wrong: list[str] = []
    fresh.on("pageerror", lambda error: wrong.append(str(error)))
    fresh.on("dialog", lambda dialog: wrong.append(dialog.message))
    fresh.on("request", lambda request: elsewhere(request.url))
    fresh.on("console", lambda said: refused(said.text))

    def elsewhere(url: str) -> None:
        if not url.startswith((address, "blob:", "about:")):
            wrong.append(url)

    def refused(text: str) -> None:
        if "Content Security Policy" in text:
            wrong.append(text)

    yield fresh
    context.close()
    assert wrong == []
