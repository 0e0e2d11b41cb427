"""Recommendations in the console, in a real browser, with a tiny recommender and its catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from models.ranking.bundle_files import load_recommender
from service.api.gateway import create_app
from service.api.recommend import Rankings
from service.explanation.worker import ExplanationWorker
from service.inference.cache import CachedPredictor
from service.inference.ranking_engine import TASK, RankingEngine
from service.registry.catalogues import CatalogueRegistry
from service.settings import Settings
from tests.browser.conftest import counting, listening, open_engine, serious_faults
from tests.support.tiny_bundle import CATALOGUE_ITEMS, tiny_recommend_bundle

PHONE = {"width": 360, "height": 740}
NASTY = "<img src=x onerror=alert(1)> 'quoted'</script>"
HISTORY = ["item-a3", "view: item-b2", "Cart: 手机", f"dislike: {NASTY}", "item-a3"]
EVENTS = [
    {"item_id": "item-a3", "text": "item-a3", "event": "purchase"},
    {"item_id": "item-b2", "text": "item-b2", "event": "view"},
    {"item_id": "手机", "text": "手机", "event": "cart"},
    {"item_id": NASTY, "text": NASTY, "event": "dislike"},
    {"item_id": "item-a3", "text": "item-a3", "event": "purchase"},
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("console")
    with counting(folder) as metrics:
        engine = open_engine(tiny_recommend_bundle(folder), metrics)
        recommender = load_recommender(engine.bundle)
        ranking_engine = RankingEngine(recommender, metrics.task(TASK))
        catalogues = CatalogueRegistry(engine.bundle, recommender, folder / "heads")
        worker = ExplanationWorker({}, lambda: engine.busy or ranking_engine.busy)
        predictors = {"recommend": CachedPredictor(engine, 0, metrics.task("recommend"))}
        app = create_app(predictors, Settings(), metrics, None, worker, Rankings(ranking_engine, catalogues))
        with listening(app) as url:
            yield url


def link(**values: str) -> str:
    return "/#" + urlencode({"tab": "try", "task": "recommend"} | values)


def explained(address: str, **more: Any) -> dict[str, Any]:
    answer = httpx.post(f"{address}/v1/explain/recommend", json={"inputs": {"history": EVENTS} | more}, timeout=60)
    result: dict[str, Any] = answer.json()["results"][0]
    return result


def expected_rows(explanation: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the items and weights of an API explanation, as the console should show them."""
    items = sorted(explanation["history"], key=lambda item: item["history_indexes"][0])
    return [(item["text"], f"{item['weight'] * 100:+.2f}".replace("-", "−")) for item in items]


def shown_rows(page: Any) -> list[tuple[str, str]]:
    return [
        (row.locator(".name").evaluate("node => node.firstChild.data"), row.locator(".figure").text_content())
        for row in page.locator(".attributions .bar").all()
    ]


def test_pointing_at_an_item_shows_its_attribution(page: Any, address: str) -> None:
    page.goto("/")
    page.fill("#history", "\n".join(HISTORY))
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".attributions")
    items = httpx.post(f"{address}/v1/recommend", json={"inputs": {"history": EVENTS}}).json()["results"][0]["items"]
    assert page.locator(".bar.item .name").all_text_contents() == [item["text"] for item in items]
    assert shown_rows(page) == expected_rows(explained(address))
    assert page.locator(".attributions .note").all_text_contents() == ["purchase × 2", "view", "cart", "dislike"]
    assert page.locator("img").count() == 0
    page.locator(".bar.item").nth(3).hover()
    page.get_by_role("heading", name=f"Attribution for “{items[3]['text']}”", exact=True).wait_for()
    assert shown_rows(page) == expected_rows(explained(address, target=items[3]["item_id"]))
    assert page.locator(".bar.item[aria-pressed=true] .name").all_text_contents() == [items[3]["text"]]
    assert f'"target":"{items[3]["item_id"]}"' in page.text_content("#try-curl pre")
    assert r"'\''quoted'\''" in page.text_content("#try-curl pre")


def test_items_can_be_selected_with_the_keyboard(page: Any) -> None:
    page.goto(link(history="\n".join(HISTORY)))
    page.wait_for_selector(".attributions")
    first, second = page.locator(".bar.item").all()[:2]
    first.focus()
    page.keyboard.press("Tab")
    assert second.get_attribute("aria-pressed") == "true"
    page.get_by_role(
        "heading", name=f"Attribution for “{second.locator('.name').text_content()}”", exact=True
    ).wait_for()


def test_a_link_restores_the_page(page: Any, address: str) -> None:
    page.goto(link(history="item-a3\nview: item-b2", among="item-c1\naa bb\n上上", exclude="1", method="occlusion"))
    page.wait_for_selector(".attributions")
    assert page.input_value("#history").split("\n") == ["item-a3", "view: item-b2"]
    assert page.input_value("#among").split("\n") == ["item-c1", "aa bb", "上上"]
    assert page.is_checked("#exclude")
    assert sorted(page.locator(".bar.item .name").all_text_contents()) == ["aa bb", "c", "上上"]
    assert page.text_content(".legend").endswith("percentage points of the score, by occlusion")
    assert "method=occlusion" in page.url


def test_a_catalogue_can_be_chosen(page: Any) -> None:
    page.goto("/")
    page.wait_for_selector("#catalogue option:nth-child(2)", state="attached")
    page.select_option("#catalogue", "letters")
    page.fill("#history", "item-a3")
    page.click("#recommend-form button.primary")
    page.wait_for_selector(".attributions")
    assert '"catalogue":"letters"' in page.text_content("#try-curl pre")


def test_without_a_history_popular_items_are_shown_without_attribution(page: Any) -> None:
    page.goto("/")
    page.click("#recommend-form button.primary")
    page.wait_for_selector(".bar.item")
    assert page.text_content("#try-answer h2") == "Popular items (no history)"
    assert page.locator(".bar.item:disabled").count() == 10
    assert page.locator(".attributions").count() == 0


def test_with_a_long_history_items_are_explained_one_by_one(page: Any) -> None:
    sizes: list[int] = []
    page.on(
        "request",
        lambda request: sizes.append(len(request.post_data_json["inputs"])) if "explain" in request.url else None,
    )
    page.goto(link(history="\n".join(item.item_id for item in CATALOGUE_ITEMS) + "\nitem-a1"))
    page.wait_for_selector(".attributions")
    page.locator(".bar.item").nth(2).click()
    page.get_by_role("heading", name=f"“{page.locator('.bar.item .name').nth(2).text_content()}”").wait_for()
    assert sizes == [1, 1]


def test_with_a_short_history_all_items_are_explained_after_the_first(page: Any) -> None:
    sizes: list[int] = []
    page.on(
        "request",
        lambda request: sizes.append(len(request.post_data_json["inputs"])) if "explain" in request.url else None,
    )
    page.goto(link(history="\n".join(HISTORY)))
    page.wait_for_selector(".attributions")
    for rank in (4, 8, 4, 0):
        page.locator(".bar.item").nth(rank).click()
        text = page.locator(".bar.item .name").nth(rank).text_content()
        page.get_by_role("heading", name=f"Attribution for “{text}”", exact=True).wait_for()
    assert sizes == [1, 9]


def test_on_a_phone_the_attribution_opens_below_the_touched_item(page: Any) -> None:
    page.set_viewport_size(PHONE)
    page.goto(link(history="\n".join(HISTORY)))
    page.wait_for_selector(".attributions")
    page.locator(".bar.item").nth(2).click()
    page.locator(".items > li:nth-child(3) #why .attributions").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_a_refused_request_shows_the_error(page: Any) -> None:
    page.goto(link(history="item-a3", catalogue="nope"))
    page.wait_for_selector("#try-status.error")
    assert page.text_content("#try-status").startswith("Not found: ")


PAGES = {"attribution": (link(history="\n".join(HISTORY)), ".attributions"), "empty": (link(), "#history:visible")}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_serious_violation(page: Any, name: str, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    address, ready = PAGES[name]
    page.goto(address)
    page.wait_for_selector(ready)
    assert serious_faults(page) == []


@pytest.mark.parametrize("name", PAGES)
def test_every_page_fits_a_phone(page: Any, name: str) -> None:
    page.set_viewport_size(PHONE)
    address, ready = PAGES[name]
    page.goto(address)
    page.wait_for_selector(ready)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
