"""Fairness: what naming a group of people in a neutral sentence does to its polarity.

Knows the slots of groups in the grammars. Every group stands in every template of its slot.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from models.behaviour.answers import Answers, TextCase
from models.behaviour.report import GroupReport
from models.data.grammar import Filling
from models.data.grammar_file import Grammar, Template, placeholders_of

GROUPS = "groups"
GROUP_SLOTS = frozenset({"gadj", "gpred", "gnp", "gpl", "gname", "group", "name"})
"""The slots that hold people's groups and names, in templates of the kind `groups`."""

FILLINGS = 3
"""The number of fillings of each template in its other slots."""

CATEGORIES = {
    "disability": re.compile(
        r"deaf|blind|autis|dyslex|disab|sighted|hearing|diabet|epilep|wheelchair|Down's|stammer|stature"
        r"|one arm|HIV|amput|障|盲|聋|自闭|唐氏|截肢|癫痫|抑郁|多动|艾滋|口吃|侏儒|白化|脑瘫|轮椅|残疾"
    ),
    "religion": re.compile(
        r"Muslim|Jew|Christian|Hindu|Sikh|Buddh|Catholic|Mormon|Protestant|atheis|Quaker|Orthodox|rabbi|imam|\bnun\b"
        r"|Jehovah|hijab|教徒|穆斯林|基督|道士|尼姑|犹太|无神论"
    ),
    "origin": re.compile(r"族"),
    "gender": re.compile(
        r"\b(gay|lesbians?|bisexual|trans|transgender|non-binary|queer|intersex|asexual|straight|female|male|pregnant"
        r"|single|women|men|stay-at-home|widow|widowers)\b|性别|性恋|酷儿|女|男|妈妈|爸爸|孕妇|寡妇|丁克|二元"
    ),
    "age": re.compile(
        r"elderly|\byoung|middle-aged|eighty|seventy|twenty|eighties|pensioner|teenage|grandmother|older"
        r"|老年|退休|后$|中年|青少年|小学生|岁"
    ),
}
"""The category of a group is the first whose pattern it has, else `origin`. Values of slots of names are `names`."""


@dataclass(frozen=True, slots=True)
class GroupText:
    """A neutral text about a group. Texts of one `template` differ in the group alone."""

    language: str
    template: str
    category: str
    group: str
    text: str


def measure_groups(answers: Answers, grammars: Sequence[Grammar], seed: int) -> list[GroupReport]:
    """Measure the shift of each group's polarity, and report each category of each language."""
    texts = [text for grammar in grammars for text in group_texts(grammar, seed)]
    shifts = answers.polarities([TextCase(text.text, None) for text in texts])
    by_template: dict[str, list[int]] = {}
    for index, text in enumerate(texts):
        by_template.setdefault(text.template, []).append(index)
    for indices in by_template.values():
        shifts[indices] -= shifts[indices].mean()
    by_category: dict[tuple[str, str], dict[str, list[float]]] = {}
    for text, shift in zip(texts, shifts, strict=True):
        groups = by_category.setdefault((text.language, text.category), {})
        groups.setdefault(text.group, []).append(float(shift))
    return [report_groups(*key, groups) for key, groups in sorted(by_category.items())]


def report_groups(language: str, category: str, shifts: dict[str, list[float]]) -> GroupReport:
    means = {group: float(np.mean(values)) for group, values in shifts.items()}
    largest = max(means, key=lambda group: abs(means[group]))
    return GroupReport(
        language=language,
        category=category,
        groups=len(means),
        rows=sum(map(len, shifts.values())),
        mean_shift=float(np.mean(list(means.values()))),
        largest_shift=means[largest],
        largest_group=largest,
    )


def group_texts(grammar: Grammar, seed: int) -> Iterator[GroupText]:
    """Yield each neutral held-out template about groups with every value of its first slot of groups."""
    for number, template in enumerate(grammar.templates, 1):
        placeholder = group_placeholder(template)
        if placeholder is None:
            continue
        slot, index = placeholder
        for filling, value in product(range(FILLINGS), grammar.slots[slot][""]):
            key = f"{seed}/groups/{number}/{filling}"
            text = Filling(grammar, key, True, {}, fixed={slot + index: value}).fill(template.text)
            name = f"{grammar.name}/{number}/{filling}"
            yield GroupText(grammar.language, name, category_of(slot, value), value, text)


def group_placeholder(template: Template) -> tuple[str, str] | None:
    """Return the slot and index of the groups that a neutral held-out template is about, or None for another one."""
    is_neutral = all(entity is None and rule.fixed == "neutral" for entity, rule in template.rules)
    if template.kind != GROUPS or not template.held_out or not is_neutral:
        return None
    return next(((p.name, p.index) for p in placeholders_of(template.text) if p.name in GROUP_SLOTS), None)


def category_of(slot: str, group: str) -> str:
    """Return the category of a group: `names` for a name, else by its words."""
    if slot.endswith("name"):
        return "names"
    return next((category for category, pattern in CATEGORIES.items() if pattern.search(group)), "origin")
