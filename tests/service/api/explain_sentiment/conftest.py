from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from models.bundle import Bundle, load_bundle
from service.telemetry.metrics import Metrics
from tests.support.explain_sentiment_app import Explains, serving
from tests.support.tiny_bundle import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture
async def explains(bundle: Bundle, metrics: Metrics) -> AsyncIterator[Explains]:
    async with serving(bundle, metrics) as running:
        yield running
