from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import values

from service.metrics import Metrics
from tests.service.serving import Service, serving


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Metrics:
    """Fresh metrics; what they set for the whole process is set back afterwards."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", os.environ.get("PROMETHEUS_MULTIPROC_DIR", ""))
    return Metrics(tmp_path / "metrics")


@pytest.fixture
async def service(tmp_path: Path, metrics: Metrics) -> AsyncIterator[Service]:
    async with serving(tmp_path, metrics) as running:
        yield running
