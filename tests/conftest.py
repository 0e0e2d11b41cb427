from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

from models.bundle import Bundle, load_bundle
from service.telemetry.logs import REQUEST_ID
from service.telemetry.metrics import Metrics
from tests.support import recommender_app as shops
from tests.support.service_app import Service, serving
from tests.support.tiny_bundle import tiny_recommend_bundle

TESTS = Path(__file__).parent
MARKERS = {"browser": "browser", "shipped": "shipped", "system": "system", "bench": "slow"}
"""The marker of all tests of a folder."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in MARKERS:
            item.add_marker(MARKERS[folder])


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Metrics]:
    """Fresh metrics. Afterwards their files are closed, and what they set for the whole process is restored."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", os.environ.get("PROMETHEUS_MULTIPROC_DIR", ""))
    opened: list[MmapedDict] = []

    class Recorded(MmapedDict):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]
            opened.append(self)

    monkeypatch.setattr(values, "MmapedDict", Recorded)
    yield Metrics(tmp_path / "metrics")
    for file in opened:
        file.close()  # type: ignore[no-untyped-call]


@pytest.fixture
def restored_logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore what `logs.configure` sets for the whole process."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    yield
    structlog.reset_defaults()
    REQUEST_ID.set("")


@pytest.fixture
async def service(tmp_path: Path, metrics: Metrics) -> AsyncIterator[Service]:
    async with serving(tmp_path, metrics) as running:
        yield running


@pytest.fixture(scope="session")
def recommend_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_recommend_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture
async def shop(recommend_bundle: Bundle, tmp_path: Path, metrics: Metrics) -> AsyncIterator[shops.Shop]:
    async with shops.serving(recommend_bundle, tmp_path / "data", metrics) as running:
        yield running
