"""A browser, pages that fail on any error, and services in this process.

These tests need Chromium (Debian: `apt-get install chromium`). They are skipped without it.
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
    """Yield metrics in the folder, and afterwards restore what they set for the whole process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "ValueClass", values.ValueClass)
        patch.setenv("PROMETHEUS_MULTIPROC_DIR", os.environ.get("PROMETHEUS_MULTIPROC_DIR", ""))
        yield Metrics(folder / "metrics")


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """Yield the address of the application when it is ready."""
    port = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, args=([port],))
    thread.start()
    address = f"http://127.0.0.1:{port.getsockname()[1]}"
    wait_until_ready(address)
    yield address
    server.should_exit = True
    thread.join(60)
    port.close()


def open_engine(path: Path, metrics: Metrics) -> Engine:
    bundle = load_bundle(path)
    tokenizer = Tokenizer.from_bundle(bundle)
    return Engine(bundle, tokenizer, OnnxRuntime(bundle.graph), fakes.LIMITS, metrics.task(bundle.task.name))


def wait_until_ready(address: str) -> None:
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        try:
            if httpx.get(f"{address}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError("the service did not start")


def serious_faults(page: Any) -> list[tuple[str, list[str]]]:
    """Return the serious violations that axe finds on the page, with their elements."""
    violations = Axe().run(page).response["violations"]
    serious = [violation for violation in violations if violation["impact"] in ("serious", "critical")]
    return [(violation["id"], [node["html"][:200] for node in violation["nodes"]]) for violation in serious]


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
    """A fresh page. The test fails if the page had an error, or sent a request to anything but the service."""
    context = browser.new_context(base_url=address)
    fresh = context.new_page()
    fresh.set_default_timeout(60_000)
    faults: list[str] = []
    fresh.on("pageerror", lambda error: faults.append(str(error)))
    fresh.on("dialog", lambda dialog: faults.append(dialog.message))
    fresh.on("request", lambda request: check_url(request.url))
    fresh.on("console", lambda message: check_console(message.text))

    def check_url(url: str) -> None:
        if not url.startswith((address, "blob:", "about:")):
            faults.append(url)

    def check_console(text: str) -> None:
        if "Content Security Policy" in text:
            faults.append(text)

    yield fresh
    context.close()
    assert faults == []
