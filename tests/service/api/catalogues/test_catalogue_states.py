"""Catalogues that are unusable, or that other processes change."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing

import numpy as np
import pytest
from structlog.testing import capture_logs

from models.bundle import Bundle
from models.catalogue.folder import create_catalogue, remove_catalogue
from models.catalogue.items import Item
from models.catalogue.store import DATABASE, Catalogue
from service.schemas.catalogue import CatalogueInfo, CatalogueList
from tests.support.catalogue_app import ITEM, Shop
from tests.support.service_app import assert_problem
from tests.support.tiny_bundle import CATALOGUE, CATALOGUE_ITEMS, WIDTH

pytestmark = pytest.mark.anyio


async def test_unusable_catalogues_are_listed_with_the_reason(shop: Shop, bundle: Bundle) -> None:
    create_catalogue(shop.folder / "old", "b" * 64, WIDTH)
    create_catalogue(shop.folder / "broken", bundle.model_digest, WIDTH)
    (shop.folder / "broken" / "items.sqlite").write_bytes(b"no database" * 1000)
    answer = await shop.client.get("/v1/catalogues")
    CatalogueList.model_validate_json(answer.content)
    catalogues = {catalogue["name"]: catalogue for catalogue in answer.json()["catalogues"]}
    assert sorted(catalogues) == sorted(["books", "broken", "old", CATALOGUE])
    assert catalogues["books"] == {"name": "books", "count": 0, "version": 0, "digest": bundle.model_digest}
    assert catalogues[CATALOGUE]["count"] == len(CATALOGUE_ITEMS)
    assert (catalogues["old"]["error"]["code"], catalogues["broken"]["error"]["code"]) == (
        "catalogue_outdated",
        "catalogue_unusable",
    )
    catalogue = await shop.client.get("/v1/catalogues/books")
    assert CatalogueInfo.model_validate_json(catalogue.content).count == 0
    assert catalogue.json() == catalogues["books"]


async def test_a_catalogue_of_another_model_is_refused_with_the_command_that_helps(shop: Shop, bundle: Bundle) -> None:
    create_catalogue(shop.folder / "old", "b" * 64, WIDTH, [Item("1", "abc")], {"1": np.ones(WIDTH, np.float32)})
    for answer in (await shop.put("old", [ITEM]), await shop.client.get("/v1/catalogues/old")):
        assert_problem(answer, 409, "catalogue_outdated")
        assert answer.json()["detail"].endswith("heed catalogue rebuild old.")
    assert await shop.outcomes("books", [ITEM]) == ["added"]
    with closing(Catalogue(shop.folder / "old")) as elsewhere:
        elsewhere.replace_vectors(bundle.model_digest, WIDTH, {"1": ("abc", np.zeros(WIDTH, np.float32))})
    assert await shop.outcomes("old", [ITEM]) == ["unchanged"]


async def test_a_broken_catalogue_is_opened_again_when_its_file_changes(shop: Shop, bundle: Bundle) -> None:
    create_catalogue(shop.folder / "broken", bundle.model_digest, WIDTH)
    file = shop.folder / "broken" / "items.sqlite"
    whole = file.read_bytes()
    file.write_bytes(b"no database" * 1000)
    for _ in range(2):
        assert_problem(await shop.client.get("/v1/catalogues/broken"), 503, "catalogue_unusable")
    file.write_bytes(whole)
    assert (await shop.client.get("/v1/catalogues/broken")).json()["count"] == 0


async def test_a_catalogue_that_cannot_be_used_is_logged_once_with_its_reason(shop: Shop, bundle: Bundle) -> None:
    create_catalogue(shop.folder / "old", "b" * 64, WIDTH)
    create_catalogue(shop.folder / "broken", bundle.model_digest, WIDTH)
    file = shop.folder / "broken" / "items.sqlite"
    file.write_bytes(b"no database" * 1000)
    with capture_logs() as records:
        for _ in range(3):
            await shop.client.get("/v1/catalogues")
            await shop.client.get("/v1/catalogues/old")
        file.write_bytes(b"another fault" * 1000)
        await shop.client.get("/v1/catalogues/broken")
    faults = [(record["catalogue"], record["reason"]) for record in records]
    assert sorted(name for name, _ in faults) == ["broken", "broken", "old"]
    assert "heed catalogue rebuild old" in dict(faults)["old"]


async def test_the_next_request_sees_edits_of_other_processes(shop: Shop, bundle: Bundle) -> None:
    vectors = {"1": np.ones(WIDTH, np.float32)}
    with closing(Catalogue(shop.folder / "books")) as elsewhere:
        elsewhere.edit(bundle.model_digest, [Item("1", "abc")], vectors)
        assert await shop.texts("books") == {"1": "abc"}
        elsewhere.edit(bundle.model_digest, [], {}, ["1"])
        assert await shop.texts("books") == {}
    create_catalogue(shop.folder / "later", bundle.model_digest, WIDTH, [Item("1", "later")], vectors)
    assert await shop.texts("later") == {"1": "later"}
    remove_catalogue(shop.folder / "later")
    assert_problem(await shop.client.get("/v1/catalogues/later"), 404, "not_found")
    create_catalogue(shop.folder / "later", bundle.model_digest, WIDTH, [Item("1", "again")], vectors)
    assert await shop.texts("later") == {"1": "again"}


async def test_an_unknown_catalogue_lists_few_names_and_the_nearest_first(shop: Shop) -> None:
    for number in range(100):
        (shop.folder / f"team-{number}").mkdir()
        (shop.folder / f"team-{number}" / DATABASE).touch()
    answer = await shop.client.get("/v1/catalogues/team-77-books")
    assert_problem(answer, 404, "not_found")
    detail = answer.json()["detail"]
    assert detail.startswith("There is no catalogue of this name; there are: team-77, ")
    assert detail.endswith(" more.")
    assert len(detail) < 200


async def test_a_cancelled_request_leaves_no_stale_snapshot(shop: Shop, bundle: Bundle) -> None:
    """Cancel a caller while its thread reads the newest state: the next caller must not miss that state."""
    with closing(Catalogue(shop.folder / "books")) as elsewhere:
        for index in range(20):
            elsewhere.edit(bundle.model_digest, [Item(str(index), "abc")], {str(index): np.ones(WIDTH, np.float32)})
            given_up = asyncio.ensure_future(shop.catalogues.snapshot("books"))
            await asyncio.sleep(0)
            given_up.cancel()
            await asyncio.sleep(0.01)
            assert len(await shop.texts("books")) == index + 1


async def test_checking_for_changes_is_cheap(shop: Shop) -> None:
    await shop.catalogues.snapshot(CATALOGUE)
    started_s = time.perf_counter()
    for _ in range(200):
        await shop.catalogues.snapshot(CATALOGUE)
    assert (time.perf_counter() - started_s) / 200 < 0.002
