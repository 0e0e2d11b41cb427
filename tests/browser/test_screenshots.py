"""The README's pictures of the console with the shipped models, on pages that are compared with the API's answers.

They are written into the folder that the environment names as SCREENSHOTS (`make screenshots`), or a temporary one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from models.bundle import SHIPPED, SHIPPED_INTENT, SHIPPED_RECOMMEND
from models.ranking.bundle_files import load_recommender
from service.api.gateway import create_app
from service.api.recommend import Rankings
from service.explanation.worker import ExplainableModel, ExplanationWorker
from service.inference.cache import CachedPredictor
from service.inference.ranking_engine import TASK, RankingEngine
from service.registry.catalogues import CatalogueRegistry
from service.registry.heads import HeadRegistry
from service.settings import Settings
from tests.browser.conftest import counting, listening, open_engine

TEXT = "Shares of Acme plunge after profit warning, but dividend is raised"
TURNS = ("I need a hotel in the north of the city", "For which days?", "From Monday, and it should not cost too much")
CANDIDATES = (
    "Thank you and goodbye.",
    "Do you have a price range in mind?",
    "Your account balance is 800 in credit.",
    "I booked the hotel for you.",
)
HISTORY = ("85099B", "21212", "22423", "view: red retrospot tea cups", "like: 烘焙模具", "85099B")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("console")
    with counting(folder) as metrics:
        engines = [open_engine(path, metrics) for path in (SHIPPED, SHIPPED_INTENT, SHIPPED_RECOMMEND)]
        predictors = {
            engine.bundle.task.name: CachedPredictor(engine, 0, metrics.task(engine.bundle.task.name))
            for engine in engines
        }
        sources = {engine.bundle.task.name: ExplainableModel(engine.bundle, engine.tokenizer) for engine in engines}
        recommender = load_recommender(engines[2].bundle)
        ranking_engine = RankingEngine(recommender, metrics.task(TASK))
        catalogues = CatalogueRegistry(engines[2].bundle, recommender, None)
        worker = ExplanationWorker(sources, lambda: any(engine.busy for engine in engines))
        heads = HeadRegistry(engines[1].bundle, folder / "heads")
        app = create_app(predictors, Settings(), metrics, heads, worker, Rankings(ranking_engine, catalogues))
        with listening(app) as url:
            yield url


def explain(address: str, task: str, **body: Any) -> dict[str, Any]:
    result: dict[str, Any] = httpx.post(f"{address}/v1/explain/{task}", json=body, timeout=120).json()["results"][0]
    return result


def shown_words(page: Any) -> list[tuple[str, str]]:
    return [(mark.text_content(), mark.get_attribute("title")) for mark in page.locator(".words span").all()]


def expected_words(words: list[dict[str, Any]]) -> list[tuple[str, str]]:
    weights = [(word["text"], f"{word['weight']:+.3f}".replace("-", "−")) for word in words]
    return [(text, f"{text}: {weight}") for text, weight in weights]


def save_screenshot(page: Any, name: str, folder: Path) -> None:
    path = Path(os.environ.get("SCREENSHOTS", folder)) / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    assert path.stat().st_size > 10_000


def test_the_page_of_a_text(page: Any, address: str, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 860, "height": 800})
    page.goto("/#" + urlencode({"tab": "try", "text": TEXT}))
    page.wait_for_selector(".words")
    answer = explain(address, "sentiment", inputs=TEXT)
    assert answer["label"] == "negative" == page.text_content("#try-answer strong")
    assert shown_words(page) == expected_words(answer["words"])
    assert max(answer["words"], key=lambda word: word["weight"])["text"] == "plunge"
    save_screenshot(page, "try", tmp_path)


def test_the_page_of_attention(page: Any, tmp_path: Path) -> None:
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 860, "height": 800})
    page.goto(
        "/#" + urlencode({"tab": "attention", "text": "Acme soars while its rival plunges", "layer": 3, "head": 1})
    )
    page.locator("#heads button").nth(11).wait_for()
    page.focus("#map")
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    assert page.locator("#heads button").count() == 12
    save_screenshot(page, "attention", tmp_path)


def test_the_page_of_replies(page: Any, address: str, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 1000, "height": 800})
    page.goto("/")
    page.check("input[value=replies]")
    page.locator("#turns input").fill(TURNS[0])
    for text in TURNS[1:]:
        page.click("#add-turn")
        page.keyboard.type(text)
    page.fill("#candidates", "\n".join(CANDIDATES))
    page.click("#dialogue-form button.primary")
    page.wait_for_selector(".dialogue")
    speakers = ("customer", "agent", "customer")
    turns = [{"speaker": speaker, "text": text} for speaker, text in zip(speakers, TURNS, strict=True)]
    answer = explain(address, "replies", turns=turns, candidates=CANDIDATES)
    assert answer["target"]["text"] == CANDIDATES[1] == page.locator(".bar.wide .name").first.text_content()
    assert shown_words(page) == expected_words([word for turn in answer["turns"] for word in turn["words"]])
    save_screenshot(page, "replies", tmp_path)


def test_the_page_of_a_history(page: Any, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 1000, "height": 800})
    page.goto("/#" + urlencode({"tab": "try", "task": "recommend", "history": "\n".join(HISTORY)}))
    page.wait_for_selector(".attributions")
    page.locator(".attributions .bar").nth(4).wait_for()
    assert page.locator(".bar.item").count() == 10
    save_screenshot(page, "recommend", tmp_path)
