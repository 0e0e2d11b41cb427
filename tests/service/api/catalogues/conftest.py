from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from models.bundle import Bundle, load_bundle
from models.catalogue.folder import create_catalogue
from models.ranking.bundle_files import load_recommender
from models.ranking.recommender import Recommender
from service.telemetry.metrics import Metrics
from tests.support.catalogue_app import Shop, serving
from tests.support.tiny_bundle import WIDTH, tiny_recommend_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_recommend_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture(scope="module")
def recommender(bundle: Bundle) -> Recommender:
    return load_recommender(bundle)


@pytest.fixture
async def shop(bundle: Bundle, tmp_path: Path, metrics: Metrics) -> AsyncIterator[Shop]:
    create_catalogue(tmp_path / "data" / "catalogues" / "books", bundle.model_digest, WIDTH)
    async with serving(bundle, tmp_path / "data", metrics) as running:
        yield running
