"""The catalogue that the bundle of a model brings."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.bundle import CARD, Bundle, save_bundle
from models.ranking.recommender import Recommender
from service.registry.catalogues import CatalogueRegistry, item_vectors
from service.telemetry.metrics import Metrics
from tests.support.catalogue_app import ITEM, serving
from tests.support.full_disk import no_room
from tests.support.service_app import assert_problem
from tests.support.successor import make_successor
from tests.support.tiny_bundle import CATALOGUE, CATALOGUE_ITEMS, WIDTH

pytestmark = pytest.mark.anyio


async def test_the_models_own_catalogue_exists_and_keeps_its_edits(
    bundle: Bundle, tmp_path: Path, metrics: Metrics
) -> None:
    async with serving(bundle, tmp_path, metrics) as shop:
        assert await shop.texts(CATALOGUE) == {item.item_id: item.text for item in CATALOGUE_ITEMS}
        snapshot = await shop.catalogues.snapshot(CATALOGUE)
        assert snapshot.filter_mask({"price": {"lte": 2}, "kind": "上"}).sum() == 2  # type: ignore[union-attr]
        assert await shop.outcomes(CATALOGUE, [], [CATALOGUE_ITEMS[0].item_id]) == ["removed"]
    async with serving(bundle, tmp_path, metrics) as again:
        assert len(await again.texts(CATALOGUE)) == len(CATALOGUE_ITEMS) - 1


@pytest.fixture(scope="module")
def successor(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_successor(bundle, tmp_path_factory.mktemp("successor"))


@pytest.mark.parametrize("edited", [False, True], ids=["as shipped", "edited"])
async def test_a_new_model_replaces_its_own_catalogue_unless_it_was_edited(
    bundle: Bundle, successor: Bundle, tmp_path: Path, metrics: Metrics, edited: bool
) -> None:
    async with serving(bundle, tmp_path, metrics) as shop:
        if edited:
            await shop.outcomes(CATALOGUE, [ITEM])
    async with serving(successor, tmp_path, metrics) as shop:
        answer = await shop.client.get(f"/v1/catalogues/{CATALOGUE}")
        if edited:
            assert_problem(answer, 409, "catalogue_outdated")
        else:
            assert answer.json()["digest"] == successor.model_digest


async def test_a_new_card_of_a_bundle_keeps_edited_catalogues(bundle: Bundle, tmp_path: Path, metrics: Metrics) -> None:
    shutil.copytree(bundle.path, tmp_path / "recommend")
    (tmp_path / "recommend" / CARD).write_text("Measured again.\n", encoding="utf-8")
    renewed = save_bundle(tmp_path / "recommend", replace(bundle, version="0.0.2"))
    assert renewed.digest != bundle.digest
    async with serving(bundle, tmp_path, metrics) as shop:
        await shop.outcomes(CATALOGUE, [ITEM])
        before = await shop.texts(CATALOGUE)
    async with serving(renewed, tmp_path, metrics) as shop:
        assert await shop.texts(CATALOGUE) == before


async def test_replicas_that_start_together_copy_the_catalogue_once(
    bundle: Bundle, recommender: Recommender, tmp_path: Path
) -> None:
    replicas = [CatalogueRegistry(bundle, recommender, tmp_path) for _ in range(4)]
    await asyncio.gather(*(replica.start() for replica in replicas))
    counts = [(await replica.snapshot(CATALOGUE)).count for replica in replicas]
    assert counts == [len(CATALOGUE_ITEMS)] * 4
    assert [path.name for path in (tmp_path / "catalogues").iterdir()] == [CATALOGUE]
    for replica in replicas:
        await replica.stop()


async def test_without_a_data_folder_the_catalogue_is_read_only(bundle: Bundle, metrics: Metrics) -> None:
    async with serving(bundle, None, metrics) as shop:
        assert len(await shop.texts(CATALOGUE)) == len(CATALOGUE_ITEMS)
        assert_problem(await shop.put(CATALOGUE, [ITEM]), 409, "catalogue_read_only")


async def test_a_full_data_folder_makes_the_catalogue_unusable_and_does_not_stop_the_service(
    bundle: Bundle, recommender: Recommender, tmp_path: Path
) -> None:
    catalogues = CatalogueRegistry(bundle, recommender, tmp_path)
    with no_room():
        await catalogues.start()
        with pytest.raises(Exception, match="no room on its disk") as refused:
            await catalogues.snapshot(CATALOGUE)
    assert type(refused.value).__name__ == "CatalogueUnusable"
    await catalogues.stop()


def test_item_vectors_has_a_vector_for_each_id(recommender: Recommender) -> None:
    raw = np.eye(WIDTH, dtype=np.float32)[:2]
    result = item_vectors(recommender, "books", ["a", "b"], raw)
    assert list(result) == ["a", "b"]
    np.testing.assert_array_equal(result["b"], recommender.item_vectors(raw, [None, None])[1])
