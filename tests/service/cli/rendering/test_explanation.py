from __future__ import annotations

from html.parser import HTMLParser

import pytest

from models.explain.explainer import Explanation, SegmentAttribution, WordAttribution
from models.explain.methods import MethodName
from service.cli.rendering.explanation import explanation_page, strongest_words, terminal_text

TEXT = ' <b>"up"</b> & Acme \x1b[31m{down}'
SCORES = {"negative": 0.1, "neutral": 0.2, "positive": 0.7}


def explanation(signed: bool = True, truncated: bool = False) -> Explanation:
    words = {"up": 0.5, "Acme": 0.0, "down": -0.25}
    weights = tuple(
        WordAttribution(
            TEXT.index(word), TEXT.index(word) + len(word), weight if signed else abs(weight), word == "Acme"
        )
        for word, weight in words.items()
    )
    method: MethodName = "two_sided_occlusion" if signed else "rollout"
    passage = SegmentAttribution(weights, (0, len(TEXT)), None)
    return Explanation(method, signed, "positive", SCORES, (passage,), 3, truncated)


class Shown(HTMLParser):
    """What a browser would show of the text, and every element and attribute of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.tags, self.attributes, self._inside = "", [], [], False  # type: ignore[var-annotated]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._inside = self._inside or ("class", "text") in attrs

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "p"

    def handle_data(self, data: str) -> None:
        self.text += data if self._inside else ""


def test_the_page_shows_the_text_as_it_is_and_runs_none_of_it() -> None:
    shown = Shown()
    shown.feed(explanation_page(TEXT, explanation()))
    assert shown.text == TEXT
    assert not {"b", "script", "img", "link"} & set(shown.tags)
    assert not any("://" in (value or "") for _, value in shown.attributes)
    assert shown.tags.count("span") == 3


def test_the_page_is_green_for_the_target_and_red_against_it() -> None:
    written = explanation_page(TEXT, explanation())
    assert '<span style="background:rgb(38,162,105)" title="+0.500">up</span>' in written
    assert '<span style="background:rgb(240,141,146)" title="-0.250">down</span>' in written
    assert '<span class="named"' in written
    assert "red against it" in written


def test_shares_of_attention_have_a_colour_of_their_own() -> None:
    written = explanation_page(TEXT, explanation(signed=False))
    assert "background:rgb(53,132,228)" in written
    assert "neither for nor against" in written


@pytest.mark.parametrize("truncated", [False, True])
def test_a_page_says_what_was_not_read(truncated: bool) -> None:
    assert ("were read" in explanation_page(TEXT, explanation(truncated=truncated))) is truncated


def test_a_text_cannot_steer_the_terminal() -> None:
    shown = terminal_text(TEXT, explanation())
    assert "\x1b" not in shown.plain
    assert shown.plain == TEXT.replace("\x1b", "\ufffd")
    assert [(shown.plain[span.start : span.end], str(span.style)) for span in shown.spans] == [
        ("up", "black on rgb(38,162,105)"),
        ("Acme", "underline"),
        ("down", "black on rgb(240,141,146)"),
    ]


def test_the_heaviest_words_are_named_for_who_sees_no_colours() -> None:
    assert strongest_words(TEXT, explanation(), 2) == "up +0.500, down -0.250"
