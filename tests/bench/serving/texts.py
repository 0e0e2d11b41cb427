"""The two sets of texts that every contender is asked: short (8 to 40 tokens) and mixed (8 to 256, heavy tail).

Real texts in English and Chinese, read from the validation files of the data sets; none is committed. The selection is
seeded: the same data gives the same texts in the same order. Lengths are those of the bundle's own tokenizer.
"""

from __future__ import annotations

import gzip
import json
import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random
from statistics import mean, median

from models.text.language import detect_language
from models.text.tokenizer import EmptyTextError, Tokenizer

SHORTEST, SHORT, LONGEST = 8, 40, 256
_SEED = 3
_NEAR = 0.1  # how far from the wanted length a text of the wanted language may be, before the other language is taken

Pool = list[tuple[int, str]]
"""Tokens and text, ascending."""


@dataclass(frozen=True, slots=True)
class TextSet:
    name: str
    texts: tuple[str, ...]
    lengths: tuple[int, ...]  # tokens of each, with the two that mark begin and end

    def described(self) -> str:
        lengths = sorted(self.lengths)
        spread = f"{lengths[0]} to {lengths[-1]} tokens, median {median(lengths):.0f}, mean {mean(lengths):.1f}"
        chinese = sum(detect_language(text) == "zh" for text in self.texts)
        return f"{self.name}: {len(lengths)} texts, {chinese} of them Chinese, {spread}"


def read(data: Path, tokenizer: Tokenizer, count: int) -> dict[str, TextSet]:
    """The sets by name; raises OSError or ValueError when the data cannot give so many texts."""
    pools: dict[str, Pool] = {"en": [], "zh": []}
    for text in sorted(set(_texts(data))):
        try:
            tokens = tokenizer.encode(text)
        except EmptyTextError:
            continue
        if SHORTEST <= tokens.length <= LONGEST and not tokens.truncated:
            pools[tokens.language].append((tokens.length, text))
    for language, pool in pools.items():
        if len(pool) < count:
            raise ValueError(f"{data} has {len(pool)} texts of language {language}, fewer than {count}")
        pool.sort()
    random = Random(_SEED)
    return {"short": _short(pools, random, count), "mixed": _mixed(pools, random, count)}


def _texts(data: Path) -> Iterator[str]:
    paths = sorted(data.glob("*/validation.jsonl.gz"))
    if not paths:
        raise OSError(f"{data} has no */validation.jsonl.gz")
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"].strip()


def _short(pools: dict[str, Pool], random: Random, count: int) -> TextSet:
    """As many of each language, any length as likely as the data has it."""
    chosen = [one for pool in pools.values() for one in random.sample([p for p in pool if p[0] <= SHORT], count // 2)]
    return _set("short", chosen, random)


def _mixed(pools: dict[str, Pool], random: Random, count: int) -> TextSet:
    """Lengths with a density of 1 / length: as many of 8 to 16 tokens as of 128 to 256. Languages in turn.

    The English sets have hardly a text above 60 tokens, so the long ones are Chinese.
    """
    left = {language: list(pool) for language, pool in pools.items()}
    chosen: Pool = []
    for language in cycle(pools):
        if len(chosen) == count:
            return _set("mixed", chosen, random)
        wanted = round(math.exp(random.uniform(math.log(SHORTEST), math.log(LONGEST))))
        place = _nearest(left[language], wanted)
        if abs(left[language][place][0] - wanted) > _NEAR * wanted:
            language = "zh" if language == "en" else "en"
            place = _nearest(left[language], wanted)
        chosen.append(left[language].pop(place))
    raise AssertionError("a cycle does not end")


def _nearest(pool: Pool, tokens: int) -> int:
    place = bisect_left(pool, (tokens, ""))
    around = [p for p in (place - 1, place) if 0 <= p < len(pool)]
    return min(around, key=lambda p: abs(pool[p][0] - tokens))


def _set(name: str, chosen: Pool, random: Random) -> TextSet:
    random.shuffle(chosen)
    return TextSet(name, tuple(text for _, text in chosen), tuple(length for length, _ in chosen))
