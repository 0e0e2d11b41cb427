"""The two text sets of the benchmark: short (8 to 40 tokens) and mixed (8 to 256, heavy tail).

Real texts in English and Chinese, read from the validation files of the data sets; none is committed. The selection is
seeded: the same data gives the same texts in the same order. Lengths are tokens of the bundle's tokenizer.
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

MIN_TOKENS, MAX_SHORT_TOKENS, MAX_TOKENS = 8, 40, 256
_SEED = 3
_MAX_DISTANCE = 0.1  # relative distance from the target length beyond which the other language is tried

Pool = list[tuple[int, str]]
"""Pairs of tokens and text, in ascending order."""


@dataclass(frozen=True, slots=True)
class TextSet:
    name: str
    texts: tuple[str, ...]
    lengths: tuple[int, ...]  # tokens per text, including the special tokens

    def describe(self) -> str:
        lengths = sorted(self.lengths)
        spread = f"{lengths[0]} to {lengths[-1]} tokens, median {median(lengths):.0f}, mean {mean(lengths):.1f}"
        chinese = sum(detect_language(text) == "zh" for text in self.texts)
        return f"{self.name}: {len(lengths)} texts, {chinese} of them Chinese, {spread}"


def read(data: Path, tokenizer: Tokenizer, count: int) -> dict[str, TextSet]:
    """Return the sets by name. Raise OSError or ValueError if the data has too few texts."""
    pools: dict[str, Pool] = {"en": [], "zh": []}
    for text in sorted(set(_texts(data))):
        try:
            encoding = tokenizer.encode(text)
        except EmptyTextError:
            continue
        if MIN_TOKENS <= encoding.length <= MAX_TOKENS and not encoding.truncated:
            pools[encoding.language].append((encoding.length, text))
    for language, pool in pools.items():
        if len(pool) < count:
            raise ValueError(f"{data} has {len(pool)} texts of language {language}, fewer than {count}")
        pool.sort()
    rng = Random(_SEED)
    return {"short": _short(pools, rng, count), "mixed": _mixed(pools, rng, count)}


def _texts(data: Path) -> Iterator[str]:
    paths = sorted(data.glob("*/validation.jsonl.gz"))
    if not paths:
        raise OSError(f"{data} has no */validation.jsonl.gz")
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"].strip()


def _short(pools: dict[str, Pool], rng: Random, count: int) -> TextSet:
    """Return as many texts of each language, with lengths as frequent as in the data."""
    short = [[text for text in pool if text[0] <= MAX_SHORT_TOKENS] for pool in pools.values()]
    chosen = [text for pool in short for text in rng.sample(pool, count // 2)]
    return _set("short", chosen, rng)


def _mixed(pools: dict[str, Pool], rng: Random, count: int) -> TextSet:
    """Return texts with a length density of 1 / length: as many of 8 to 16 tokens as of 128 to 256.

    Languages alternate. The English sets have few texts above 60 tokens, so the long ones are Chinese.
    """
    remaining = {language: list(pool) for language, pool in pools.items()}
    chosen: Pool = []
    for language in cycle(pools):
        if len(chosen) == count:
            return _set("mixed", chosen, rng)
        target = round(math.exp(rng.uniform(math.log(MIN_TOKENS), math.log(MAX_TOKENS))))
        index = _nearest(remaining[language], target)
        if abs(remaining[language][index][0] - target) > _MAX_DISTANCE * target:
            language = "zh" if language == "en" else "en"
            index = _nearest(remaining[language], target)
        chosen.append(remaining[language].pop(index))
    raise AssertionError("a cycle does not end")


def _nearest(pool: Pool, tokens: int) -> int:
    position = bisect_left(pool, (tokens, ""))
    neighbours = [index for index in (position - 1, position) if 0 <= index < len(pool)]
    return min(neighbours, key=lambda index: abs(pool[index][0] - tokens))


def _set(name: str, chosen: Pool, rng: Random) -> TextSet:
    rng.shuffle(chosen)
    return TextSet(name, tuple(text for _, text in chosen), tuple(length for length, _ in chosen))
