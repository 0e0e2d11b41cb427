"""Numbers that a grammar draws by itself: amounts, shares, counts, dates and times, as English and Chinese write them.

Each function is deterministic in its generator. Knows no grammar.
"""

from __future__ import annotations

import random

NUMBERS = ("percent", "money", "count", "small", "year", "day", "clock", "integer")
PAIRED = ("percent", "money", "count", "small")
"""The kinds of which a text may name two, a lower and a higher one in the same unit."""

MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
PERCENT = {"en": ("{}%", "{}%", "{}%", "{}%", "{} %", "{} per cent", "{} percent"), "zh": ("{}%",) * 4 + ("百分之{}",)}
MONEY = {
    "en": (
        *("EUR {} million", "${}m", "${} million", "${}bn", "£{}m", "Rs {} crore"),
        *("{} million euros", "CNY {} billion", "NOK {}m", "${} billion", "{} million Swiss francs", "USD {}k"),
    ),
    "zh": ("{}亿元", "{}万元", "{}亿美元", "{}亿港元", "{}亿欧元", "人民币{}亿元"),
}
PAIR_RANGES = {"percent": (1.0, 30.0), "money": (1.0, 300.0), "count": (30.0, 60_000.0), "small": (0.1, 6.0)}


def draw_number(kind: str, rng: random.Random, language: str) -> str:
    """Return a number of one of the kinds in NUMBERS."""
    if kind == "percent":
        return write_number(kind, draw_from(rng, (0.3, 9.9), (10, 60)), rng.choice(PERCENT[language]), language)
    if kind == "money":
        return write_number(kind, draw_from(rng, (1, 9), (10, 900)), rng.choice(MONEY[language]), language)
    if kind == "count":
        return write_number(kind, draw_from(rng, (20, 999), (1_000, 90_000)), "{}", language)
    if kind == "small":
        return write_number(kind, rng.uniform(0.05, 9), "{}", language)
    if kind == "year":
        return str(rng.randint(1985, 2030))
    if kind == "day":
        month, day = rng.randint(1, 12), rng.randint(1, 28)
        return f"{month}月{day}日" if language == "zh" else f"{day} {MONTHS[month - 1]}"
    if kind == "clock":
        if language == "zh" or rng.random() < 0.5:
            return f"{rng.randint(8, 20)}:{rng.choice(('00', '15', '30', '45'))}"
        return f"{rng.randint(1, 11)}:{rng.choice(('00', '30'))} {rng.choice(('am', 'pm'))}"
    return str(rng.randint(2, 40))


def draw_pair(kind: str, rng: random.Random, language: str) -> tuple[str, str]:
    """Return a lower and a higher number of one of the kinds in PAIRED, in the same unit."""
    unit = "{}"
    if kind == "percent":
        unit = "{}%"
    if kind == "money":
        unit = rng.choice(MONEY[language])
    low = rng.uniform(*PAIR_RANGES[kind])
    high = low * rng.uniform(1.05, 1.7) + 0.1
    return write_number(kind, low, unit, language), write_number(kind, high + (kind == "count"), unit, language)


def draw_from(rng: random.Random, *ranges: tuple[float, float]) -> float:
    """Return a number of one of the ranges, each as likely as the others."""
    return rng.uniform(*rng.choice(ranges))


def write_number(kind: str, value: float, unit: str, language: str) -> str:
    if kind == "count":
        return unit.format(f"{int(value)}" if language == "zh" else f"{int(value):,}")
    if kind == "small":
        return unit.format(f"{value:.2f}")
    return unit.format(f"{value:.1f}".removesuffix(".0"))
