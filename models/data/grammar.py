"""Examples made from a grammar: labelled by construction, with counterparts that differ in one thing.

A template of the training side is never measured, nor is a held-out value of a slot ever trained on. Everything follows
from the seed. Knows grammar files, nothing of models.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, product

from models.data.classification import Example
from models.data.grammar_file import (
    ORDER,
    PLACEHOLDER,
    SIGNS,
    Grammar,
    Template,
    placeholders_of,
)
from models.data.grammar_numbers import draw_number, draw_pair
from models.tasks import SENTIMENT


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarExample(Example):
    """A row made from a grammar. `kind` is the capability that it tests.

    Rows of one `group` are counterparts: the same filling in other signs, or asked about another entity.
    """

    kind: str
    group: str

    @property
    def is_example(self) -> bool:
        """True for a whole sentence of the grammar, False for a filled template."""
        return self.group.rpartition("/")[2].startswith("e")


def generate(grammar: Grammar, seed: int, per_template: int, held_out: bool) -> list[GrammarExample]:
    """Return the rows of a grammar's training side, or of its held-out side, in the order of the file.

    Each template is filled `per_template` times, and each filling in every combination of the signs that decide its
    labels. A template that asks about entities gives a row for each. A filling that repeats an earlier one is left out.
    """
    rows: list[GrammarExample] = []
    for number, template in enumerate(grammar.templates, 1):
        if template.held_out == held_out:
            rows += fill_template(grammar, template, f"{grammar.name}/{number}", seed, per_template, held_out)
    for number, example in enumerate(grammar.examples, 1):
        if example.held_out == held_out:
            for entity, rule in example.rules:
                rows.append(make_row(grammar, example, example.text, entity, rule.label({}), f"e{number}"))
    return rows


def fill_template(
    grammar: Grammar, template: Template, name: str, seed: int, per_template: int, held_out: bool
) -> Iterator[GrammarExample]:
    """Yield the rows of a template whose `name` is unique, filled `per_template` times."""
    combinations = list(sign_combinations(grammar, template))
    earlier: set[str] = set()
    for filling in range(per_template):
        made = [Filling(grammar, f"{seed}/{name}/{filling}", held_out, signs) for signs in combinations]
        texts = [each.fill(template.text) for each in made]
        if earlier.isdisjoint(texts):
            earlier.update(texts)
            for each, text in zip(made, texts, strict=True):
                for asked, rule in template.rules:
                    entity = None if asked is None else each.value_of(asked)
                    group = f"{name.rpartition('/')[2]}/{filling}"
                    yield make_row(grammar, template, text, entity, rule.label(each.signs), group)


def make_row(
    grammar: Grammar, template: Template, text: str, entity: str | None, label: str, group: str
) -> GrammarExample:
    return GrammarExample(
        text=text,
        label=label,
        entity=entity,
        dataset=grammar.name,
        language=grammar.language,
        label_choices=SENTIMENT.labels,
        kind=template.kind,
        group=f"{grammar.name}/{group}",
    )


def sign_combinations(grammar: Grammar, template: Template) -> Iterator[dict[str, int]]:
    """Yield the signs of every combination of a template's factors. A factor with a fixed side has that sign alone."""
    choices: dict[str, tuple[int, ...]] = {factor: (1, -1) if factor == ORDER else () for factor in template.factors}
    for placeholder in placeholders_of(template.text):
        factor = placeholder.name + placeholder.index
        if factor in choices and not choices[factor]:
            sides = placeholder.side or grammar.slots[placeholder.name]
            choices[factor] = tuple(SIGNS[side] for side in sides)
    for signs in product(*choices.values()):
        yield dict(zip(choices, signs, strict=True))


class Filling:
    """Values for the placeholders of one text.

    Each placeholder draws from a generator of its own, seeded with `key` and its name. So two fillings of one key
    differ only where their `signs` or `fixed` values do. `fixed` gives values of placeholders, such as `company2`.
    """

    def __init__(
        self,
        grammar: Grammar,
        key: str,
        held_out: bool,
        signs: Mapping[str, int],
        fixed: Mapping[str, str] | None = None,
    ) -> None:
        self._grammar, self._key, self._held_out = grammar, key, held_out
        self.signs = dict(signs)
        self._values: dict[tuple[str, str], str] = {(name, ""): value for name, value in (fixed or {}).items()}
        self._used: dict[str, list[str]] = {}
        self._numbers = 0

    def fill(self, text: str, path: str = "") -> str:
        """Return the text with its placeholders filled, and in their values those too. `path` names such a value."""
        places = count()
        return PLACEHOLDER.sub(lambda match: self._fill_one(match, f"{path}/{next(places)}"), text)

    def value_of(self, name: str) -> str:
        """Return the value of a placeholder that was filled, `company` or `company2`."""
        return next(value for (filled, _), value in self._values.items() if filled == name)

    def _fill_one(self, match: re.Match[str], path: str) -> str:
        capital, relation, name, index, side = match.groups()
        if relation:
            value = self._pair_member(relation, name)
        elif name in self._grammar.slots:
            value = self._slot_value(name, index, side)
        else:
            value = draw_number(name, self._rng(f"{path}/{name}"), self._grammar.language)
        return value[:1].upper() + value[1:] if capital else value

    def _rng(self, *names: str) -> random.Random:
        return random.Random("/".join((self._key, *names)))

    def _pair_member(self, relation: str, kind: str) -> str:
        low, high = draw_pair(kind, self._rng("pair", kind), self._grammar.language)
        is_rising = self.signs.setdefault(ORDER, self._rng(ORDER).choice((1, -1))) > 0
        return {"low": low, "high": high, "first": low if is_rising else high, "second": high if is_rising else low}[
            relation
        ]

    def _slot_value(self, name: str, index: str, side: str) -> str:
        for key in ((name + index, side), (name + index, "")):
            if key in self._values:
                return self._values[key]
        sign, used = side or self._drawn_sign(name, index), self._used.setdefault(name, [])
        unlike = [value for value in self._order(name, sign) if not any(is_alike(value, other) for other in used)]
        others = (value for value in self._grammar.slots[name][sign] if value not in used)
        value = unlike[0] if unlike else next(others)
        used.append(value)
        return self._values.setdefault((name + index, side), self.fill(value, f"{name}{index}"))

    def _drawn_sign(self, name: str, index: str) -> str:
        sides = self._grammar.slots[name]
        if "" in sides:
            return ""
        sign = self.signs.setdefault(name + index, SIGNS[self._rng("sign", name + index).choice(sorted(sides))])
        return next(side for side, value in SIGNS.items() if value == sign)

    def _order(self, name: str, sign: str) -> list[str]:
        """Return the values in random order: those of the side, and on the held-out side then the others."""
        values, held_out = self._grammar.slots[name][sign], self._grammar.held_out_values
        sides = ([value for value in values if value not in held_out], [value for value in values if value in held_out])
        rng = self._rng(name, sign)
        trained, measured = (rng.sample(side, len(side)) for side in sides)
        return [*measured, *trained] if self._held_out else trained or measured


def is_alike(value: str, other: str) -> bool:
    """Return True if one value contains the other, so that a mention of it would be one of both."""
    return value.casefold() in other.casefold() or other.casefold() in value.casefold()
