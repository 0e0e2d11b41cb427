"""The console in a real browser, with the shipped sentiment model and a tiny intent model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from models.bundle import SHIPPED, load_bundle
from service.api.gateway import create_app
from service.explanation.worker import ExplainableModel, ExplanationWorker
from service.inference.cache import CachedPredictor
from service.registry.heads import HeadRegistry
from service.settings import Settings
from tests.browser.conftest import counting, listening, open_engine, serious_faults
from tests.support.tiny_bundle import tiny_intent_bundle

PHONE = {"width": 360, "height": 740}
NASTY = "Shares <img src=x onerror=alert(1)> plunge 👍🏽 after '; profit</script> warning"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("console")
    with counting(folder) as metrics:
        engines = [open_engine(path, metrics) for path in (SHIPPED, tiny_intent_bundle(folder))]
        predictors = {
            engine.bundle.task.name: CachedPredictor(engine, 0, metrics.task(engine.bundle.task.name))
            for engine in engines
        }
        sources = {engine.bundle.task.name: ExplainableModel(engine.bundle, engine.tokenizer) for engine in engines}
        worker = ExplanationWorker(sources, lambda: any(engine.busy for engine in engines))
        heads = HeadRegistry(engines[1].bundle, folder / "heads")
        with listening(create_app(predictors, Settings(label_set="letters"), metrics, heads, worker)) as url:
            yield url


def link(**values: str) -> str:
    return "/#" + urlencode(values)


def test_a_text_is_answered_and_its_words_are_coloured(page: Any) -> None:
    page.goto("/")
    page.fill("#text", "Shares of Acme plunge after profit warning")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".words")
    assert page.text_content("#try-answer strong") == "negative"
    assert page.locator(".bar.chosen .name").first.text_content() == "negative"
    heaviest = page.locator(".words .for", has_text="plunge")
    assert heaviest.get_attribute("title").startswith("plunge: +0.")
    assert page.text_content(".words") == "Shares of Acme plunge after profit warning"
    assert "/v1/explain/sentiment" in page.text_content("#try-curl pre")


def test_a_link_restores_the_page(page: Any) -> None:
    text, entity = "平安银行：净利润大增；永吉股份：股东拟减持", "永吉股份"
    page.goto(link(tab="try", text=text, entity=entity, target="positive"))
    page.wait_for_selector(".words")
    assert page.input_value("#text") == text
    assert page.text_content(".words") == text
    assert "".join(page.locator(".words .entity").all_text_contents()) == entity
    assert page.locator("#try-answer h2").text_content() == "Attribution for positive"


def test_an_entity_that_the_text_does_not_name_has_no_bars(page: Any) -> None:
    page.goto(link(tab="try", text="Shares of Acme plunge", entity="Birch"))
    page.wait_for_selector("#try-answer .verdict")
    assert page.text_content("#try-answer") == "Birch is not found in the text."
    assert page.locator("#try-answer .bar").count() == 0
    assert page.locator(".words").count() == 0


def test_ctrl_enter_runs_once_from_every_field(page: Any) -> None:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.url.endswith("/v1/sentiment") else None)
    page.goto("/")
    page.fill("#text", "Acme soars while Birch plunges")
    page.fill("#entity", "Acme")
    for field in ("#text", "#entity", "#method"):
        sent.clear()
        page.focus(field)
        page.keyboard.press("Control+Enter")
        page.wait_for_selector(".words")
        assert len(sent) == 1, field
    page.click("#tab-attention")
    page.focus("#attention-entity")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#attention-answer:not([hidden])")


def test_a_text_in_another_language_is_marked(page: Any) -> None:
    page.goto(link(tab="try", text="Le service est terrible"))
    page.wait_for_selector(".words")
    assert "neither English nor Chinese" in page.text_content("#try-answer .language")
    page.goto("about:blank")
    page.goto(link(tab="try", text="Profit rose"))
    page.wait_for_selector(".words")
    assert page.locator("#try-answer .language").count() == 0


def test_a_file_marks_texts_in_another_language(page: Any) -> None:
    page.goto("/#tab=batch")
    file = {"name": "texts.txt", "mimeType": "text/plain", "buffer": b"Le service est terrible\nProfit rose"}
    page.set_input_files("#file", files=[file])
    page.wait_for_selector("#save-csv:not([hidden])")
    labels = page.locator("#rows tbody td:nth-child(3)").all_text_contents()
    assert [label.endswith("unsupported language") for label in labels] == [True, False]


def test_markup_in_a_text_is_shown_as_text(page: Any) -> None:
    page.goto(link(tab="try", text=NASTY))
    page.wait_for_selector(".words")
    assert page.text_content(".words") == NASTY
    assert page.locator("img").count() == 0
    assert r"'\''" in page.text_content("#try-curl pre")


@pytest.mark.parametrize(
    "fragment", ["tab=nothing", "tab=try&task=intent&turns=[1,{", "tab=try&method=x&target=y", "%"]
)
def test_an_invalid_fragment_shows_a_page(page: Any, fragment: str) -> None:
    page.goto(f"/#{fragment}")
    page.wait_for_selector("#served:not(:empty)")
    assert page.locator("[role=tabpanel]:not([hidden])").count() == 1


def test_a_refused_text_shows_the_error(page: Any) -> None:
    page.goto(link(tab="try", text="\u200b"))
    page.wait_for_selector("#try-status.error")
    assert page.text_content("#try-status").startswith("Empty text: ")


def test_tabs_work_with_the_keyboard(page: Any) -> None:
    page.goto("/")
    page.wait_for_selector("#served:not(:empty)")
    page.focus("#tab-try")
    for key, name in (("ArrowRight", "attention"), ("End", "models"), ("ArrowRight", "try"), ("ArrowLeft", "models")):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.id") == f"tab-{name}"
        assert page.get_attribute(f"#tab-{name}", "aria-selected") == "true"
        assert page.is_visible(f"#panel-{name}")
        assert page.locator("[role=tab][tabindex='-1']").count() == 3


def test_a_link_shows_the_attention_of_a_layer_and_head(page: Any) -> None:
    page.goto(link(tab="attention", text="Acme soars", layer="7", head="2"))
    page.wait_for_selector("#attention-answer:not([hidden])")
    assert page.locator("#layer option").count() == 9
    assert (page.input_value("#layer"), page.input_value("#head")) == ("7", "2")
    assert page.locator("#heads button").count() == 12
    page.focus("#map")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    assert " % of the attention is on " in page.text_content("#cell")
    page.locator("#heads button").nth(5).click()
    assert page.input_value("#head") == "5"
    assert "head=5" in page.url


def test_a_file_is_answered_and_can_be_downloaded(page: Any) -> None:
    page.goto(link(tab="batch"))
    rows = [
        "id,text,entity",
        '1,"Shares, of ""Acme"" plunge",',
        "2,股价大涨,",
        "3,Acme soars while B plunges,B",
        "4,\u200b,",
        "5,Acme soars,B",
    ]
    rows += [f"{index},Profit rises {index} percent," for index in range(6, 50)]
    file = {"name": "texts.csv", "mimeType": "text/csv", "buffer": "\r\n".join(rows).encode()}
    page.set_input_files("#file", files=[file])
    page.wait_for_selector("#save-jsonl:not([hidden])")
    assert "49 of 49 done, 1 failed, 1 without their entity." in page.text_content("#batch-status")
    assert page.locator("#rows tbody tr").count() == 49
    with page.expect_download() as download:
        page.click("#save-jsonl")
    results = [json.loads(line) for line in Path(download.value.path()).read_text(encoding="utf-8").splitlines()]
    assert [(row["id"], row.get("label")) for row in results[:5]] == [
        ("1", "negative"),
        ("2", "positive"),
        ("3", "negative"),
        ("4", None),
        ("5", None),
    ]
    assert page.locator("#rows tbody tr").nth(4).locator("td").nth(2).text_content() == "not found in the text"
    assert results[0]["text"] == 'Shares, of "Acme" plunge'
    with page.expect_download() as download:
        page.click("#save-csv")
    assert Path(download.value.path()).read_text(encoding="utf-8").startswith("id,text,entity,label,negative,")


def fill_turns(page: Any, *texts: str) -> None:
    page.locator("#turns input").fill(texts[0])
    for text in texts[1:]:
        page.click("#add-turn")
        page.keyboard.type(text)


def shown_words(page: Any) -> list[list[tuple[str, str]]]:
    """Return the words and tooltips of each turn on the page."""
    return [
        [(mark.text_content(), mark.get_attribute("title")) for mark in turn.locator(".words span").all()]
        for turn in page.locator(".dialogue li").all()
    ]


def expected_words(answer: dict[str, Any]) -> list[list[tuple[str, str]]]:
    """Return the same from the API's answer."""
    weights = [
        [(word["text"], f"{word['weight']:+.3f}".replace("-", "−")) for word in turn["words"]]
        for turn in answer["results"][0]["turns"]
    ]
    return [[(text, f"{text}: {weight}") for text, weight in turn] for turn in weights]


def test_a_dialogue_shows_its_intents_and_their_attribution(page: Any, address: str) -> None:
    page.goto("/")
    page.check("input[value=intent]")
    page.select_option("#label-set", "letters")
    fill_turns(page, "hello", "yes?", "bbbbbb")
    page.click("#dialogue-form button.primary")
    page.wait_for_selector(".dialogue")
    assert page.text_content("#try-status").startswith("Label set letters: 3 turns read")
    assert page.locator("#try-answer .bar.wide").count() == 4
    shared = page.url
    page.goto("about:blank")
    page.goto(shared)
    page.wait_for_selector(".dialogue")
    assert page.locator("#turns li").count() == 3
    turns = [{"speaker": who, "text": text} for who, text in zip("cac", ("hello", "yes?", "bbbbbb"), strict=True)]
    turns = [turn | {"speaker": {"c": "customer", "a": "agent"}[turn["speaker"]]} for turn in turns]
    page.get_by_role("button", name="Why a", exact=True).click()
    page.get_by_role("heading", name="Attribution for a", exact=True).wait_for()
    body = {"inputs": {"turns": turns}, "label_set": "letters", "target": "a"}
    assert shown_words(page) == expected_words(httpx.post(f"{address}/v1/explain/intent", json=body, timeout=60).json())
    assert "/v1/explain/intent" in page.text_content("#try-curl pre")


def test_replies_are_ranked_and_explained(page: Any, address: str) -> None:
    page.goto("/")
    page.check("input[value=replies]")
    fill_turns(page, "aaaa <b>bb</b>")
    candidates = ["aaaa", "<img src=x onerror=alert(1)>"]
    page.fill("#candidates", "\n".join([*candidates, "", "aaaa"]))
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector(".dialogue")
    assert sorted(page.locator("#try-answer .bar.wide .name").all_text_contents()) == sorted(candidates)
    page.get_by_role("button", name=f"Why {candidates[1]}").click()
    page.get_by_role("heading", name=f"Attribution for “{candidates[1]}”").wait_for()
    turns = [{"speaker": "customer", "text": "aaaa <b>bb</b>"}]
    body = {"turns": turns, "candidates": candidates, "target": 1}
    assert shown_words(page) == expected_words(
        httpx.post(f"{address}/v1/explain/replies", json=body, timeout=60).json()
    )
    shared = page.url
    page.goto("about:blank")
    page.goto(shared)
    page.wait_for_selector(".dialogue")
    assert page.input_value("#candidates").split("\n")[:2] == candidates


def test_rollout_shows_attention_through_all_layers(page: Any) -> None:
    page.goto(link(tab="attention", text="Acme soars", layer="rollout"))
    page.wait_for_selector("#attention-answer:not([hidden])")
    assert page.text_content("#attention-status").startswith("Rollout through all layers")
    assert page.is_hidden("#all-heads")
    page.select_option("#layer", "3")
    page.locator("#heads button").nth(11).wait_for()


PAGES = {
    "text": (link(tab="try", text="Shares of Acme plunge after profit warning"), ".words"),
    "intent": (link(tab="try", task="intent", turns='[["agent","yes?"],["customer","bbbb"]]'), ".dialogue"),
    "replies": (link(tab="try", task="replies", turns='[["customer","aaaa"],["customer","bb"]]'), ".dialogue"),
    "attention": (link(tab="attention", text="Acme soars", layer="7"), "#map:visible"),
    "batch": (link(tab="batch"), "#panel-batch:not([hidden])"),
    "models": (link(tab="models"), "#live tbody tr"),
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_serious_violation(page: Any, name: str, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    address, ready = PAGES[name]
    page.goto(address)
    page.wait_for_selector(ready)
    assert serious_faults(page) == []


def test_the_page_loads_less_than_300_kilobytes(page: Any) -> None:
    loaded: list[int] = []
    page.on("response", lambda response: loaded.append(len(response.body())))
    page.goto("/")
    page.wait_for_selector("#served:not(:empty)")
    assert 10_000 < sum(loaded) < 300_000


def test_models_and_their_traffic_are_shown(page: Any) -> None:
    page.goto(link(tab="models"))
    page.wait_for_selector("#live tbody tr")
    page.evaluate(
        "fetch('/v1/sentiment', {method: 'POST', headers: {'Content-Type': 'application/json'},"
        " body: JSON.stringify({inputs: 'up'})})"
    )
    page.locator("#live td:nth-child(3)", has_text=re.compile(r"\d")).first.wait_for()
    assert page.locator(".bundle").count() == 2
    assert load_bundle(SHIPPED).digest in page.text_content("#bundles")


@pytest.mark.parametrize("name", PAGES)
def test_every_page_fits_a_phone(page: Any, name: str) -> None:
    page.set_viewport_size(PHONE)
    address, ready = PAGES[name]
    page.goto(address)
    page.wait_for_selector(ready)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_methods_are_those_of_the_openapi_document(page: Any, address: str) -> None:
    page.goto("/")
    page.wait_for_selector("#method option:nth-child(2)", state="attached")
    schemas = httpx.get(f"{address}/openapi.json").json()["components"]["schemas"]
    methods = schemas["ExplainRequest"]["properties"]["method"]["enum"]
    options = page.locator("#method option").evaluate_all("options => options.map((option) => option.value)")
    assert options == [method for method in methods if method != "attention"]
