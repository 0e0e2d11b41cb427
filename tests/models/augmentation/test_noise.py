"""Noise changes the form of a text, never its entity, and follows from the seed."""

from __future__ import annotations

import random

import pytest

from models.augmentation.chinese_characters import HOMOPHONES, SIMPLIFIED, TRADITIONAL
from models.augmentation.noise import NOISES, apply
from models.text.words import HAN

ENGLISH = "Acme says {profits} rose & costs didn't, at ACME's northern factories"
CHINESE = "平安银行的服务没有问题，质量比什么都好 ACME"


def noisy(name: str, text: str, language: str = "en", keep: str | None = None, seed: int = 0) -> str:
    return apply(name, text, random.Random(seed), language, keep)


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize(("text", "language", "entity"), [(ENGLISH, "en", "acme"), (CHINESE, "zh", "银行的服务")])
def test_the_entity_stays_and_the_seed_decides(name: str, text: str, language: str, entity: str) -> None:
    for seed in range(40):
        changed = noisy(name, text, language, entity, seed)
        assert changed == noisy(name, text, language, entity, seed)
        for mention in ("Acme", "ACME") if language == "en" else (entity,):
            assert mention in changed
        assert "{profits}".casefold() in changed.casefold() or "typo" in name or language == "zh"


@pytest.mark.parametrize("name", NOISES)
def test_each_noise_changes_a_text_of_its_language(name: str) -> None:
    chinese = name in ("traditional", "homophones")
    text, language = (CHINESE, "zh") if chinese else (ENGLISH, "en")
    assert all(noisy(name, text, language, seed=seed) != text for seed in range(20))


def test_capitals_and_traditional_characters() -> None:
    assert noisy("capitals", "Costs fell at Acme", keep="acme") == "COSTS FELL AT Acme"
    assert noisy("traditional", "质量没问题", "zh") == "質量沒問題"
    assert noisy("homophones", "costs 的", "en") == "costs 的"


def test_html_escapes_what_html_must() -> None:
    changed = noisy("html", "R&D costs < plan", keep="plan")
    assert "R&amp;D" in changed
    assert "&lt;" in changed
    assert "<" in changed


def test_a_typo_changes_one_word_and_two_change_at_most_two() -> None:
    for seed in range(50):
        words = ENGLISH.split()
        for name, most in (("typo", 1), ("two_typos", 2)):
            changed = noisy(name, ENGLISH, seed=seed).split()
            assert len(changed) == len(words)
            assert sum(before != after for before, after in zip(words, changed, strict=True)) <= most


def test_a_typo_spares_links_handles_and_short_words() -> None:
    text = "it is so @handle https://example.org/abcdef big"
    assert all(noisy("typo", text, seed=seed) == text for seed in range(30))


def test_a_chinese_typo_spares_negations() -> None:
    for seed in range(50):
        changed = noisy("typo", "这不好", "zh", seed=seed)
        assert "不好" in changed
    assert noisy("typo", "不", "zh") == "不"


def test_spaces_leave_every_character() -> None:
    for text, language in ((ENGLISH, "en"), (CHINESE, "zh")):
        assert "".join(noisy("spaces", text, language, seed=3).split()) == "".join(text.split())


def test_the_tables_hold_chinese_characters_once() -> None:
    assert len(SIMPLIFIED) == len(TRADITIONAL) == len(set(SIMPLIFIED))
    assert all(HAN.match(before) and before != after for before, after in zip(SIMPLIFIED, TRADITIONAL, strict=True))
    assert all(word != other for word, other in HOMOPHONES.items())
