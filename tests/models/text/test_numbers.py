"""How reading 1 tells a model which number is larger."""

from __future__ import annotations

import time

import pytest

from models.text.reading import read_text


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("EPS 2.8 vs 5.8 expected", "EPS 2.8 vs higher 5.8 expected"),
        ("EPS 5.8 vs 2.8 expected", "EPS 5.8 vs lower 2.8 expected"),
        ("rose to $5.2 billion from $4,800 million", "rose to $5.2 billion from lower $4,800 million"),
        ("Revenue $1.2B vs $1.35B", "Revenue $1.2B vs higher $1.35B"),
        ("EUR17.7mn (EUR11.2mn)", "EUR17.7mn (lower EUR11.2mn)"),
        ("from 12% to 14.5 per cent", "from 12% to higher 14.5 per cent"),
        ("45 bps from 0.5%", "45 bps from higher 0.5%"),
        ("HK$3.2 and US$3.2", "HK$3.2 and equal US$3.2"),
        ("a loss of -2.3 versus -1.1", "a loss of -2.3 versus higher -1.1"),
        ("up 3% to 120.5, down 5% from 118", "up 3% to 120.5, down higher 5% from lower 118"),
        ("净利润由3.2亿元增至4.1亿元", "净利润由3.2亿元增至更高4.1亿元"),
        ("1.5万亿超过9000亿", "1.5万亿超过更低9000亿"),
        ("毛利率由百分之12.5降至百分之9.8", "毛利率由百分之12.5降至更低百分之9.8"),
        ("2024年3月14日收入3.2万元,2023年为2.9万元", "2024年3月14日收入3.2万元,2023年为更低2.9万元"),
        ("on 14 March 2024, 5,300 staff vs 4,900", "on 14 March 2024, 5,300 staff vs lower 4,900"),
    ],
)
def test_a_number_stands_beside_its_comparison(text: str, read: str) -> None:
    assert read_text(text).text == read


@pytest.mark.parametrize(
    "text",
    [
        "in 2023 and 2024",
        "March 14 and 15 March",
        "6:30 to 7:30, 10-12 items, 3-2",
        "A320 and 737-800 and B-13",
        "1.2.3 and 2.3.4",
        "12/05 and 13/05",
        "up 3% to 120",
        "revenue of 5.2 billion, EPS 2.8",
        "3月14日和15日",
        "1st and 2nd",
        "@3 #4 _5",
        "12",
        "costs fell",
    ],
)
def test_dates_ranges_codes_and_other_units_are_not_compared(text: str) -> None:
    assert read_text(text).text == text


def test_a_comparison_stands_for_the_first_character_of_its_number() -> None:
    text = "&amp; 2.8 vs 5.8"
    read = read_text(text)
    place = read.text.index("higher")
    assert read.text == "& 2.8 vs higher 5.8"
    assert text[slice(*read.map_offsets([(place, place + 1)])[0])] == "5"
    assert [text[slice(*span)] for span in read.map_offsets([(9, 19), (16, 19), (0, 1)])] == ["5.8", "5.8", "&amp;"]


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["1 ", "1", "1,", "1.1", "$", "1-", "5% ", "百分之3", "Rs. 4 "])
def test_the_time_is_linear(unit: str) -> None:
    def cpu_time_s(length: int) -> float:
        start_s = time.process_time()
        read_text(unit * (length // len(unit)))
        return time.process_time() - start_s

    assert min(cpu_time_s(30_000) for _ in range(2)) < 1.0
