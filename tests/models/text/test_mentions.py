from __future__ import annotations

import time

import pytest

from models.text.mentions import find_mentions


@pytest.mark.parametrize(
    ("text", "entity", "mentions"),
    [
        ("ACME falls, acme rises", "Acme", ["ACME", "acme"]),
        ("Coca-Cola's profit, Coca\n Cola up", "Coca Cola", ["Coca-Cola", "Coca\n Cola"]),
        ("Coca Cola up", "coca–cola", ["Coca Cola"]),
        ("Acme's and Acmes", "Acme's", ["Acme", "Acme"]),
        ("The rooms", "room", ["room"]),
        ("$AAPL, #AAPL, AAPL", "$AAPL", ["AAPL", "AAPL", "AAPL"]),
        ("$AAPL", "AAPL", ["AAPL"]),
        ("@Apple bad", "Apple", ["Apple"]),
        ("股平安银行涨", "平安", ["平安"]),
        ("騰訊漲，腾讯跌", "腾讯", ["騰訊", "腾讯"]),
        ("腾讯跌", "騰訊", ["腾讯"]),
        ("ＡＣＭＥ falls", "acme", ["ＡＣＭＥ"]),
        ("苹果 公司与iPhone手机", "苹果公司", ["苹果 公司"]),
        ("买iPhone手机", "iPhone 手机", ["iPhone手机"]),
        ("苹果Apple涨", "Apple", ["Apple"]),
        ("AT&amp;T gains", "AT&T", ["AT&amp;T"]),
        ("<b>Ac</b>me up", "Acme", ["Ac</b>me"]),
        ("Nestlé and L’Oréal", "Nestle", ["Nestlé"]),
        ("Nestle\u0301 up", "Nestlé", ["Nestle"]),
        ("Acme™ up", "Acme", ["Acme"]),
        ("a (b", "(b", ["(b"]),
    ],
)
def test_an_entity_is_compared_by_spelling(text: str, entity: str, mentions: list[str]) -> None:
    assert [text[start:end] for start, end in find_mentions(text, entity)] == mentions


@pytest.mark.parametrize(
    ("text", "entity"),
    [
        ("Acmeville up", "Acme"),
        ("Model 35", "Model 3"),
        ("As I love", "A"),
        ("see https://apple.com/x", "apple"),
        ('<img alt="Acme" src="x">', "Acme"),
        ("🚀 up", "rocket"),
        ("Google rises", "Alphabet"),
        ("平安银行涨", "永吉股份"),
        ("anything", "\u0301"),
    ],
)
def test_another_word_is_no_mention(text: str, entity: str) -> None:
    assert find_mentions(text, entity) == []


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["a", "a ", "涨", "é-", "&amp;", "<b>"])
def test_the_time_is_linear(unit: str) -> None:
    start_s = time.perf_counter()
    find_mentions(unit * (30_000 // len(unit)), unit * (500 // len(unit)) + "b")
    assert time.perf_counter() - start_s < 1.0
