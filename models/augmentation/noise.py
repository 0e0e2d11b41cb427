"""Noise: changes of a text that leave its meaning, for training and for measuring what they change in an answer.

Every function is deterministic in its generator. Knows characters, nothing of models.
"""

from __future__ import annotations

import html
import random
import re
from collections.abc import Callable, Iterator

from models.augmentation.chinese_characters import HOMOPHONES, TO_TRADITIONAL
from models.text.words import HAN

Noise = Callable[[str, random.Random, str], str]
"""Maps a text, a generator and a language to the changed text. A text that has nothing to change stays as it is."""

MASKS = "\ue000\uf8ff\ue001"
"""Characters of private use. One that is not in a text stands for the entity while noise is applied."""

TYPO_WORD = re.compile(r"(?<![A-Za-z@#/.:])[A-Za-z]{4,}(?![A-Za-z@/:])")
HOMOPHONE = re.compile("|".join(sorted(HOMOPHONES, key=len, reverse=True)))
NEGATIONS = frozenset("不没无未非别勿莫")
NEIGHBOURS = {
    "a": "sq", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo",
    "j": "hk", "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o", "q": "wa", "r": "et",
    "s": "ad", "t": "ry", "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu", "z": "x",
}  # fmt: skip
HANDLES = ("marketwire", "dan_1987", "newsroom24", "JoLinden", "the_tape", "daily_ledger", "小林同学", "财经早班车")
LINKS = ("https://t.co/{}", "https://bit.ly/{}", "http://www.example.com/{}", "https://news.example.org/a/{}")
DATES = {
    "en": (
        *("{y}-{m:02}-{d:02} ", "{d:02}.{m:02}.{y} - ", "{m}/{d}/{y}: "),
        *("[{y}-{m:02}-{d:02} {h:02}:30] ", "{mon} {d}, {y} "),
    ),
    "zh": (
        *("{y}年{m}月{d}日 ", "{m}月{d}日，", "【{y}-{m:02}-{d:02}】"),
        *("{y}-{m:02}-{d:02} {h:02}:30 ", "（{m}月{d}日）"),
    ),
}
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
TAGS = (
    *(("<p>", "</p>"), ("<b>", "</b>"), ('<div class="text">', "</div>"), ("<span>", "</span>")),
    *(("", "<br/>"), ("<h2>", "</h2>"), ("<li>", "</li>")),
)


def apply(noise_name: str, text: str, rng: random.Random, language: str, keep: str | None = None) -> str:
    """Return the text with a noise of NOISES. Mentions of the entity `keep` stay as they are, in any case."""
    noise = NOISES[noise_name]
    if not keep:
        return noise(text, rng, language)
    mask = next(mask for mask in MASKS if mask not in text)
    mention = re.compile(re.escape(keep), re.IGNORECASE)
    mentions: Iterator[str] = iter(mention.findall(text))
    return re.sub(mask, lambda _: next(mentions, ""), noise(mention.sub(mask, text), rng, language))


def use_capitals(text: str, rng: random.Random, language: str) -> str:
    return text.upper()


def add_link(text: str, rng: random.Random, language: str) -> str:
    """Add a short link after the text, or sometimes before it."""
    code = "".join(rng.choices("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=rng.randint(6, 10)))
    link = rng.choice(LINKS).format(code)
    return f"{link} {text}" if rng.random() < 0.25 else f"{text} {link}"


def add_handle(text: str, rng: random.Random, language: str) -> str:
    handle = rng.choice(HANDLES[-2:] if language == "zh" and rng.random() < 0.5 else HANDLES[:-2])
    return rng.choice(("@{handle} {text}", "RT @{handle}: {text}", "{text} @{handle}", "{text} via @{handle}")).format(
        handle=handle, text=text
    )


def add_html(text: str, rng: random.Random, language: str) -> str:
    """Escape the text as HTML, put it into a tag and, half of the time, turn a space into an entity."""
    escaped = html.escape(text)
    spaces = [match.start() for match in re.finditer(" ", escaped)]
    if spaces and rng.random() < 0.5:
        place = rng.choice(spaces)
        escaped = f"{escaped[:place]}&nbsp;{escaped[place + 1 :]}"
    before, after = rng.choice(TAGS)
    return f"{before}{escaped}{after}"


def add_date(text: str, rng: random.Random, language: str) -> str:
    """Put a date before the text."""
    month = rng.randint(1, 12)
    date = rng.choice(DATES[language]).format(
        y=rng.randint(2015, 2027), m=month, d=rng.randint(1, 28), h=rng.randint(7, 19), mon=MONTHS[month - 1]
    )
    return f"{date}{text}"


def add_typo(text: str, rng: random.Random, language: str) -> str:
    """Mistype one word of at least four letters, or one Chinese character that does not negate."""
    if language == "zh":
        places = [
            match.start() for match in HAN.finditer(text) if not NEGATIONS & set(text[match.start() : match.end() + 1])
        ]
        if not places:
            return text
        place = rng.choice(places)
        pair = text[place : place + 2]
        is_swappable = len(pair) == 2 and HAN.match(pair[1]) and rng.random() < 0.5
        wrong = pair[::-1] if is_swappable else pair[0] + pair
        return text[:place] + wrong + text[place + len(pair) :]
    words = [match.span() for match in TYPO_WORD.finditer(text)]
    if not words:
        return text
    start, end = rng.choice(words)
    return text[:start] + mistype(text[start:end], rng) + text[end:]


def mistype(word: str, rng: random.Random) -> str:
    """Swap, drop, double or replace a letter of a word after its first."""
    place = rng.randrange(1, len(word) - 1)
    letter = word[place]
    near = rng.choice(NEIGHBOURS[letter.lower()])
    swapped = word[place + 1] + letter if word[place + 1] != letter else letter
    kind = rng.randrange(4)
    if kind == 0:
        return word[:place] + swapped + word[place + 2 :]
    wrong = ("", letter * 2, near.upper() if letter.isupper() else near)[kind - 1]
    return word[:place] + wrong + word[place + 1 :]


def add_two_typos(text: str, rng: random.Random, language: str) -> str:
    return add_typo(add_typo(text, rng, language), rng, language)


def use_traditional(text: str, rng: random.Random, language: str) -> str:
    """Write frequent characters in their traditional form, as in Hong Kong and Taiwan."""
    return text.translate(TO_TRADITIONAL)


def add_spaces(text: str, rng: random.Random, language: str) -> str:
    """Double some spaces, put some between Chinese characters, and add white space around the text."""
    wide = re.sub(" ", lambda match: "  " if rng.random() < 0.4 else " ", text)
    if language == "zh":
        wide = re.sub(rf"({HAN.pattern})(?={HAN.pattern})", lambda m: m[1] + (" " if rng.random() < 0.2 else ""), wide)
    return f"{rng.choice(('', ' ', '  '))}{wide}{rng.choice((' ', '  ', chr(10)))}"


def use_homophones(text: str, rng: random.Random, language: str) -> str:
    """Write one or two Chinese words as others of their sound."""
    matches = list(HOMOPHONE.finditer(text)) if language == "zh" else []
    for match in sorted(rng.sample(matches, min(len(matches), 2)), key=re.Match.start, reverse=True):
        text = text[: match.start()] + HOMOPHONES[match[0]] + text[match.end() :]
    return text


NOISES: dict[str, Noise] = {
    "capitals": use_capitals,
    "link": add_link,
    "handle": add_handle,
    "html": add_html,
    "date": add_date,
    "typo": add_typo,
    "two_typos": add_two_typos,
    "traditional": use_traditional,
    "spaces": add_spaces,
    "homophones": use_homophones,
}
"""The noises by name."""
