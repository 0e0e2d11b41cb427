"""The shipped tokenizer with reading 1: what it reports lies in the text as sent, exactly."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise

import pytest

from models.bundle import SHIPPED
from models.text.reading import read_text
from models.text.tokenizer import Tokenizer, Turn

pytestmark = pytest.mark.slow

READER, PLAIN = (Tokenizer(SHIPPED / "tokenizer.json", 512, reading) for reading in (1, 0))

COMPARED = re.compile("higher|lower|equal|更高|更低|持平")
"""Words that stand before a number that is compared, and for its first character."""

WORDS = ("Acme", "profits", "plunge", "strong", "warning", "rises", "café", "cafe\u0301", "GAINS", "don't", "3.5%")
SIGNS = (
    *("📈", "📉📉📉", "🚀 🚀", "👍🏽", "👨‍👩‍👧", "🇨🇳", "❤️‍🔥", "1️⃣", "↑", "⬆️", "🛘"),
    *("🏴\U000e0067\U000e0062\U000e007f", ":)", ":-(", "^_^", "T_T", "<3", "[怒]"),
    *("<b>", "</b>", "<br/>", '<a href="https://x.y/?a=1&b=2">', "<", "<s>"),
    *("&amp;", "&#39;", "&nbsp;", "&#128200;", "&lt;br&gt;", "&", "$TSLA"),
    *("https://t.co/Xy:)", "http://t.cn/A6股价", "@bob", "@张三 ", "RT @al: ", "a@b.com"),
    *("淨利潤", "騰訊", "漲停", "後來", "股价，", "５０％", "ＡＣＭＥ", "㍿", "ﬁne", "\ufdfa", "½"),
    *("5.8", " $4,800 million", "12%", "3.2亿元", "百分之9.8", "-1.1", "2024年"),
    *("e\u0301\u0327", "И\u0306", "sooooo", "!!!!!!", "哈哈哈哈哈", "----", "1000000"),
    *("ACME FILES FOR BANKRUPTCY", "İ", "ß", "\u200b", "\u200d", "\u00ad", "\x07", "\ufeff", "\ufe0f"),
    *("🏽", " ", "  ", "\n", "\t", "\u3000", "\u00a0", ""),
)


def texts(count: int) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Yield random texts, each with the spans of its words that stand between spaces."""
    rng = random.Random(19)
    for _ in range(count):
        text, spans = "".join(rng.choices(SIGNS, k=rng.randint(0, 3))), []
        for _ in range(rng.randint(1, 5)):
            word = rng.choice(WORDS)
            spans.append((len(text) + 1, len(text) + 1 + len(word)))
            text += f" {word} " + "".join(rng.choices(SIGNS, k=rng.randint(0, 4)))
        yield text, spans


def bare(text: str) -> str:
    """Return the letters and digits without marks, width, form or case."""
    return "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if c.isalnum())


def test_words_keep_their_tokens_in_ten_thousand_mixed_texts() -> None:
    for text, spans in texts(10_000):
        encoding = READER.encode_with_words(text)
        (words,), strings = encoding.segments, READER.token_strings(encoding.tokens)
        assert (words.spans, words.read_span) == (PLAIN.encode_with_words(text).segments[0].spans, (0, len(text)))
        assert encoding.tokens.ids.tolist() == READER.encode(text).ids.tolist()
        ranges = [(places[0], places[-1]) for places in words.token_positions if places]
        assert all(before[0] <= here[0] and before[1] <= here[1] for before, here in pairwise(ranges)), text
        assert all(1 <= first <= last < encoding.tokens.length - 1 for first, last in ranges)
        for span in spans:
            parts = [
                places
                for part, places in zip(words.spans, words.token_positions, strict=True)
                if span[0] <= part[0] and part[1] <= span[1]
            ]
            tokens = "".join(strings[place] for place in sorted({place for places in parts for place in places}))
            assert bare(COMPARED.sub("", tokens)) == bare(text[slice(*span)]), (text, span, tokens)


def test_tokens_consist_of_what_their_words_are_read_as() -> None:
    for text, _ in texts(3_000):
        encoding = READER.encode_with_words(text)
        (words,) = encoding.segments
        for position, string in enumerate(READER.token_strings(encoding.tokens)[1:-1], 1):
            spans = [
                span
                for span, positions in zip(words.spans, words.token_positions, strict=True)
                if position in positions
            ]
            assert spans or string == "▁", (text, position)
            if string in ("▁", "<unk>", "<s>", "</s>"):
                continue
            if string.strip("▁") in "higher lower equal 更高 更低 持平":
                continue
            surface = text[spans[0][0] : spans[-1][1]]
            read = f"{surface} {read_text(surface).text} {read_text(f'{surface} x').text}"
            assert bare(COMPARED.sub("", string)) in bare(read), (text, string, surface)


@pytest.mark.parametrize(
    ("text", "removed"),
    [("so <b>good</b> now", "<>b/"), ("哈哈哈哈哈", "")],
)
def test_words_that_reading_removes_have_no_tokens(text: str, removed: str) -> None:
    (words,) = READER.encode_with_words(text).segments
    empty = [text[slice(*span)] for span, places in zip(words.spans, words.token_positions, strict=True) if not places]
    assert set("".join(empty)) == set(removed) or (not removed and empty == ["哈", "哈"])


def test_an_emoji_is_one_word_with_the_tokens_of_its_name() -> None:
    encoding = READER.encode_with_words("Profit📈now")
    (words,), strings = encoding.segments, READER.token_strings(encoding.tokens)
    assert words.spans == ((0, 6), (6, 7), (7, 10))
    assert ["".join(strings[place] for place in places) for places in words.token_positions] == [
        "▁Profit",
        "▁chart▁rising",
        "▁now",
    ]


def test_opposite_signs_have_different_tokens() -> None:
    for up, down in [("📈", "📉"), ("⬆️", "⬇️"), (":)", ":("), ("😀", "😡")]:
        assert READER.encode(f"Acme {up}").ids.tolist() != READER.encode(f"Acme {down}").ids.tolist()
    assert PLAIN.encode("Acme 📈").ids.tolist() == PLAIN.encode("Acme 📉").ids.tolist()


@pytest.mark.parametrize(
    ("text", "entity", "marked"),
    [
        ("📈 Coca-Cola beats <b>PEPSI</b>", "coca cola", "▁Coca-Cola▁coca▁cola"),
        ("騰訊漲", "腾讯", "▁腾讯▁腾讯"),
        ("@Apple is bad", "Apple", "▁@user▁Apple"),
        ("ACME FALLS AND BIRCH CORP RISES", "ACME", "▁acme▁acme"),
    ],
)
def test_the_mentions_of_an_entity_are_marked(text: str, entity: str, marked: str) -> None:
    tokens = READER.encode(text, entity)
    strings = READER.token_strings(tokens)
    assert "".join(string for string, kind in zip(strings, tokens.token_types, strict=True) if kind) == marked
    assert tokens.names_entity


def test_turns_are_read_too() -> None:
    context = [Turn("agent", "<b>how</b> are you 👍"), Turn("customer", "SO BAD, TERRIBLE SERVICE")]
    encoding = READER.encode_dialogue_with_words("ok &amp; bye :)", context)
    strings = "".join(READER.token_strings(encoding.tokens))
    tokens, turns = READER.encode_dialogue("ok &amp; bye :)", context)
    assert (tokens.ids.tolist(), turns) == (encoding.tokens.ids.tolist(), 3)
    assert (
        strings == "<s>▁agent:▁how▁are▁you▁thumbs▁up▁customer:▁so▁bad,▁terrible▁service</s>▁ok▁&▁bye▁smiling▁face</s>"
    )


def test_the_language_is_that_of_the_text_as_sent() -> None:
    assert READER.encode("股价大涨🚀🚀📈📈").language == "zh"


def test_a_cut_text_names_the_part_that_was_read() -> None:
    text = "📈 Acme rises. " * 2000 + "Birch"
    tokens, (words,) = (encoding := READER.encode_with_words(text)).tokens, encoding.segments
    assert (tokens.length, tokens.truncated, words.read_span[0]) == (512, True, 0)
    assert words.spans[-1][1] <= words.read_span[1] < 8192
    assert not READER.encode(text, "Birch").names_entity
    late = READER.encode("Fine. " * 1000 + "Birch 📉 " + "ok. " * 100, "Birch")
    assert late.names_entity
    assert late.token_types[:400].any()
