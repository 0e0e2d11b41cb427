"""What reading 1 makes of a text, and that it takes linear time."""

from __future__ import annotations

import time
import unicodedata

import pytest

from models.text.emoji_names import EMOTICONS, NAMES, SEQUENCE_NAMES, name_emoji
from models.text.reading import read_text
from models.text.traditional import SIMPLIFIED


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Profit 📈", "Profit chart rising"),
        ("利润📉了", "利润 chart falling 了"),
        ("up📈. Down", "up chart rising. Down"),
        ("🚀🚀🚀🚀 🚀", "rocket rocket"),
        ("👍🏽👍🏿", "thumbs up thumbs up"),
        ("🤷🏽‍♀️ ok ❤️‍🔥", "shrug ok burning love"),
        ("🇨🇳 1️⃣ ⬆️5%", "CN 1 up 5%"),
        ("EPS ↑, revenue ↘", "EPS up, revenue falling"),
        ("great :) really :-(", "great smiling face really sad face"),
        ("不错:) ^_^", "不错 smiling face smiling face"),
        ("I love it <3", "I love it love"),
        ("what❗❗ why❓", "what!! why?"),
        ("★★★☆☆ ▪ item", "★★★☆☆ ▪ item"),
        ("[怒][笑哭] 他说：[怒]", "[怒][笑哭] 他说:[怒]"),
    ],
)
def test_emoji_and_emoticons_are_named(text: str, read: str) -> None:
    assert read_text(text).text == read


@pytest.mark.parametrize(
    "text",
    [
        *(
            "at 3:0 (3:0) 10:30",
            "f(x :) y",
            "(note :)",
            "for <3 months",
            "如下:(一)",
            "完成:D轮融资",
            "D:P",
            "x=)",
            "a;)b",
        ),
        *("if a <b and c> d", "1 < b > 0", "AT&T & co", "R&D; x", "a@b.com @ 5pm", "$1,000,000 and 10000", "3.5元@3"),
    ],
)
def test_what_only_looks_like_a_sign_stays(text: str) -> None:
    assert read_text(text).text == text


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("<p>I <b>lo</b>ve it<br/>so</p>", "I love it so"),
        ('<a href="https://x.cn/?a=1&b=2" class=x>read</a>', "read"),
        ("a&lt;br&gt;b &lt;b&gt;c&lt;/b&gt;", "a b c"),
        ("Q&amp;A you&#39;re &#x1F4C8; a&nbsp;b", "Q&A you're chart rising a\u00a0b"),
        ("see https://t.co/a:)b?c=d<br>now HTTP://X.Y", "see http now http"),
        ("看http://t.cn/A6x股价", "看 http 股价"),
        ("RT @bob: RT @al: @alice look", "@user look"),
        ("回复@张三: 你好", "回复@user: 你好"),
        ("pro\u200bf\u00adit\x07s\ufeff", "profits"),
        ("sooooo good!!!!!! 哈哈哈哈哈", "sooo good!!! 哈哈哈"),
        ("淨利潤大幅增長，股價上漲", "净利润大幅增长,股价上涨"),
        ("乾坤 著名 覆盖", "乾坤 著名 覆盖"),
        ("ＡＣＭＥ　１２％", "ACME 12%"),
        ("2026-01-02 10:30 Acme falls", "2026-01-02 10:30 Acme falls"),
    ],
)
def test_what_wraps_a_text_is_removed(text: str, read: str) -> None:
    assert read_text(text).text == read


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("ACME FILES FOR BANKRUPTCY PROTECTION", "acme files for bankruptcy protection"),
        ("ACME FILES FOR BANKRUPTCY 📉 https://t.co/abcdefghijklmnop", "acme files for bankruptcy chart falling http"),
        ("TERRIBLE SERVICE!!!", "terrible service!!!"),
        ("ACME", "ACME"),
        ("$AAPL $MSFT $NVDA $GOOG UP", "$AAPL $MSFT $NVDA $GOOG UP"),
        ("IBM and NASA sign a contract with ACME", "IBM and NASA sign a contract with ACME"),
        ("央行公布GDP、CPI、PPI、PMI数据，均好于市场预期", "央行公布GDP、CPI、PPI、PMI数据,均好于市场预期"),
        ("İSTANBUL BANKASI BÜYÜDÜ", "İstanbul bankasi büyüdü"),
    ],
)
def test_capitals_are_lowered_if_most_letters_are_capitals(text: str, read: str) -> None:
    assert read_text(text).text == read


@pytest.mark.parametrize("text", ["<br>", "<p> </p>", "RT @bob: ", "&#8203;<b></b>"])
def test_a_text_of_which_nothing_would_remain_is_read_as_sent(text: str) -> None:
    assert read_text(text).text == text


@pytest.mark.parametrize("text", ["Shares of Acme plunge", "股价上涨, 10%", "a  b\tc"])
def test_a_plain_text_is_unchanged(text: str) -> None:
    read = read_text(text)
    assert (read.text, read.starts, read.ends) == (text, None, None)


def test_every_character_points_to_what_it_stands_for() -> None:
    text = "A&amp;B 📈📈up"
    read = read_text(text)
    places = dict(zip(range(len(read.text)), zip(read.starts or (), read.ends or (), strict=True), strict=True))
    assert read.text == "A&B chart rising chart rising up"
    assert [text[slice(*places[index])] for index in (0, 1, 2, 4, 17, 30)] == ["A", "&amp;", "B", "📈", "📈", "u"]
    assert (places[4], places[17], places[16], places[29]) == ((8, 9), (9, 10), (9, 9), (10, 10))


def test_the_first_repeats_stay_and_the_rest_has_no_character() -> None:
    read = read_text("sooooo!")
    assert (read.text, list(read.starts or ())) == ("sooo!", [0, 1, 2, 3, 6])


def test_the_tables_are_consistent() -> None:
    assert all(len(character) == 1 for pair in SIMPLIFIED.items() for character in pair)
    assert len(SIMPLIFIED) == 2948
    assert all(name_emoji(sign) == name for sign, name in (NAMES | SEQUENCE_NAMES).items())
    assert all(name.isascii() for name in [*NAMES.values(), *SEQUENCE_NAMES.values(), *EMOTICONS])
    assert name_emoji("🦄") == unicodedata.name("🦄").lower()


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    [
        *(
            "<a ",
            "<a b=",
            "<!--",
            "&lt;a b=",
            "&#1",
            "a",
            "@",
            "@a",
            "RT @a: ",
            ":(",
            "(:",
            "<3 ",
            "https://",
            "📈",
            "👩‍",
        ),
        *("1️", "\u200b", "涨", "淨", "<", "&", "A ", "哈", " ", "_", "T_", "😀 ", "🇨", "<a a"),
    ],
)
def test_the_time_is_linear(unit: str) -> None:
    def duration_s(length: int) -> float:
        text, start_s = unit * (length // len(unit)), time.perf_counter()
        read_text(text)
        return time.perf_counter() - start_s

    assert min(duration_s(30_000) for _ in range(2)) < 1.0
