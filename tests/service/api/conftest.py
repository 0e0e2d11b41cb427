from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from models.bundle import Bundle, load_bundle
from service.telemetry.metrics import Metrics
from tests.support.intent_app import Intents, serving
from tests.support.tiny_bundle import tiny_intent_bundle


@pytest.fixture(scope="module")
def intent_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_intent_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture
async def intents(intent_bundle: Bundle, tmp_path: Path, metrics: Metrics) -> AsyncIterator[Intents]:
    async with serving(intent_bundle, tmp_path / "data", metrics) as running:
        yield running
