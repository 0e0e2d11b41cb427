"""Recommendations in the console, in a real browser, over a tiny recommender and its catalogue."""

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
from tests.browser.conftest import counting, engine, listening, serious_faults
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
        served = engine(tiny_recommend_bundle(folder), metrics)
        recommender = load_recommender(served.bundle)
        recommending = RankingEngine(recommender, metrics.task(TASK))
        catalogues = CatalogueRegistry(served.bundle, recommender, folder / "shelf")
        explaining = ExplanationWorker({}, lambda: served.busy or recommending.busy)
        predictors = {"recommend": CachedPredictor(served, 0, metrics.task("recommend"))}
        app = create_app(predictors, Settings(), metrics, None, explaining, Rankings(recommending, catalogues))
        with listening(app) as found:
            yield found


def link(**values: str) -> str:
    return "/#" + urlencode({"tab": "try", "task": "recommend"} | values)


def explained(address: str, **more: Any) -> dict[str, Any]:
    answer = httpx.post(f"{address}/v1/explain/recommend", json={"inputs": {"history": EVENTS} | more}, timeout=60)
    found: dict[str, Any] = answer.json()["results"][0]
    return found


def told(one: dict[str, Any]) -> list[tuple[str, str]]:
    """Of an explanation by the API, each item and its weight, as the console is to show them."""
    shown = sorted(one["history"], key=lambda item: item["history_indexes"][0])
    return [(item["text"], f"{item['weight'] * 100:+.2f}".replace("-", "−")) for item in shown]


def shown(page: Any) -> list[tuple[str, str]]:
    return [
        (row.locator(".name").evaluate("node => node.firstChild.data"), row.locator(".figure").text_content())
        for row in page.locator(".leanings .bar").all()
    ]


def test_a_history_is_answered_and_weighed_for_the_item_that_is_pointed_at(page: Any, address: str) -> None:
    page.goto("/")
    page.fill("#history", "\n".join(HISTORY))
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".leanings")
    served = httpx.post(f"{address}/v1/recommend", json={"inputs": {"history": EVENTS}}).json()["results"][0]["items"]
    assert page.locator(".bar.item .name").all_text_contents() == [one["text"] for one in served]
    assert shown(page) == told(explained(address))
    assert page.locator(".leanings .note").all_text_contents() == ["purchase × 2", "view", "cart", "dislike"]
    assert page.locator("img").count() == 0
    page.locator(".bar.item").nth(3).hover()
    page.get_by_role("heading", name=f"What speaks for “{served[3]['text']}”", exact=True).wait_for()
    assert shown(page) == told(explained(address, target=served[3]["item_id"]))
    assert page.locator(".bar.item[aria-pressed=true] .name").all_text_contents() == [served[3]["text"]]
    assert f'"target":"{served[3]["item_id"]}"' in page.text_content("#try-curl pre")
    assert r"'\''quoted'\''" in page.text_content("#try-curl pre")


def test_items_are_reached_by_the_keyboard(page: Any) -> None:
    page.goto(link(history="\n".join(HISTORY)))
    page.wait_for_selector(".leanings")
    first, second = page.locator(".bar.item").all()[:2]
    first.focus()
    page.keyboard.press("Tab")
    assert second.get_attribute("aria-pressed") == "true"
    page.get_by_role(
        "heading", name=f"What speaks for “{second.locator('.name').text_content()}”", exact=True
    ).wait_for()


def test_what_is_shown_can_be_sent_to_somebody(page: Any, address: str) -> None:
    page.goto(link(history="item-a3\nview: item-b2", among="item-c1\naa bb\n上上", exclude="1", method="occlusion"))
    page.wait_for_selector(".leanings")
    assert page.input_value("#history").split("\n") == ["item-a3", "view: item-b2"]
    assert page.input_value("#among").split("\n") == ["item-c1", "aa bb", "上上"]
    assert page.is_checked("#exclude")
    assert sorted(page.locator(".bar.item .name").all_text_contents()) == ["aa bb", "c", "上上"]
    assert page.text_content(".legend").endswith("percentage points of its score, by occlusion")
    assert "method=occlusion" in page.url


def test_a_catalogue_is_chosen(page: Any) -> None:
    page.goto("/")
    page.wait_for_selector("#catalogue option:nth-child(2)", state="attached")
    page.select_option("#catalogue", "letters")
    page.fill("#history", "item-a3")
    page.click("#recommend-form button.primary")
    page.wait_for_selector(".leanings")
    assert '"catalogue":"letters"' in page.text_content("#try-curl pre")


def test_without_a_history_there_is_what_is_popular_and_nothing_to_explain(page: Any) -> None:
    page.goto("/")
    page.click("#recommend-form button.primary")
    page.wait_for_selector(".bar.item")
    assert page.text_content("#try-answer h2") == "Without a history: what is popular"
    assert page.locator(".bar.item:disabled").count() == 10
    assert page.locator(".leanings").count() == 0


def test_of_a_long_history_items_are_explained_one_by_one(page: Any) -> None:
    asked: list[int] = []
    page.on(
        "request",
        lambda request: asked.append(len(request.post_data_json["inputs"])) if "explain" in request.url else None,
    )
    page.goto(link(history="\n".join(item.item_id for item in CATALOGUE_ITEMS) + "\nitem-a1"))
    page.wait_for_selector(".leanings")
    page.locator(".bar.item").nth(2).click()
    page.get_by_role("heading", name=f"“{page.locator('.bar.item .name').nth(2).text_content()}”").wait_for()
    assert asked == [1, 1]


def test_of_a_short_history_all_items_are_explained_after_the_first(page: Any) -> None:
    asked: list[int] = []
    page.on(
        "request",
        lambda request: asked.append(len(request.post_data_json["inputs"])) if "explain" in request.url else None,
    )
    page.goto(link(history="\n".join(HISTORY)))
    page.wait_for_selector(".leanings")
    for place in (4, 8, 4, 0):
        page.locator(".bar.item").nth(place).click()
        text = page.locator(".bar.item .name").nth(place).text_content()
        page.get_by_role("heading", name=f"What speaks for “{text}”", exact=True).wait_for()
    assert asked == [1, 9]


def test_on_a_phone_the_history_opens_below_what_was_touched(page: Any) -> None:
    page.set_viewport_size(PHONE)
    page.goto(link(history="\n".join(HISTORY)))
    page.wait_for_selector(".leanings")
    page.locator(".bar.item").nth(2).click()
    page.locator(".items > li:nth-child(3) #why .leanings").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_what_cannot_be_answered_is_said(page: Any) -> None:
    page.goto(link(history="item-a3", catalogue="nope"))
    page.wait_for_selector("#try-status.error")
    assert page.text_content("#try-status").startswith("Not found: ")


SHOWN = {"weighed": (link(history="\n".join(HISTORY)), ".leanings"), "empty": (link(), "#history:visible")}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", SHOWN)
def test_axe_finds_nothing_serious(page: Any, name: str, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    address, ready = SHOWN[name]
    page.goto(address)
    page.wait_for_selector(ready)
    assert serious_faults(page) == []


@pytest.mark.parametrize("name", SHOWN)
def test_nothing_is_wider_than_a_phone(page: Any, name: str) -> None:
    page.set_viewport_size(PHONE)
    address, ready = SHOWN[name]
    page.goto(address)
    page.wait_for_selector(ready)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
