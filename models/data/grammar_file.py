"""Grammar files: slots with values, and templates whose label follows from the values put into them.

A file of `models/data/grammars` is TOML, and docs/training.md describes its keys. A slot of "+" and "-" values decides
a sign. A template's label is a product of such signs, or fixed. Reading checks every template, so that filling one
cannot fail. Knows nothing of data sets or models.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.data.grammar_numbers import NUMBERS, PAIRED
from models.tasks import SENTIMENT

GRAMMARS = Path(__file__).parent / "grammars"
ORDER = "order"
"""The sign of a pair of numbers: + if the second is the higher one."""

SIGNS = {"+": 1, "-": -1, "0": 0}
LABELS = {1: "positive", 0: "neutral", -1: "negative"}
LANGUAGES = ("en", "zh")
HELD_OUT_SHARE, MIN_HELD_OUT_FROM = 5, 5
"""A fifth of the values of a slot is held out, if it has at least 5."""

KEYS = {"language", "slots", "templates", "examples"}
TEMPLATE_KEYS = {"kind", "text", "label", "ask", "held_out"}
PLACEHOLDER = re.compile(r"\{(\^?)(?:(first|second|high|low):)?([a-z_]+)(\d?)([+\-0]?)\}")


class GrammarError(ValueError):
    """A grammar file with a mistake. The message names the file, and the slot or template."""


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A `{...}` of a text: `{^name}`, `{name2}`, `{name+}` or `{first:money}`. Parts that are missing are empty."""

    capital: bool
    relation: str
    name: str
    index: str
    side: str


@dataclass(frozen=True, slots=True)
class LabelRule:
    """A fixed label, or the product of a sign and of the signs of slots."""

    fixed: str | None
    sign: int
    factors: tuple[str, ...]

    def label(self, signs: Mapping[str, int]) -> str:
        if self.fixed is not None:
            return self.fixed
        product = self.sign
        for factor in self.factors:
            product *= signs[factor]
        return LABELS[product]


@dataclass(frozen=True, slots=True)
class Template:
    """A text with placeholders and its labels: one of the whole text (None), or one for each asked entity.

    An entity of a template is a placeholder's name. Entities of an example stand in its text as they are.
    """

    kind: str
    text: str
    rules: tuple[tuple[str | None, LabelRule], ...]
    held_out: bool

    @property
    def factors(self) -> tuple[str, ...]:
        """The signs that decide a label."""
        return tuple(dict.fromkeys(factor for _, rule in self.rules for factor in rule.factors))


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar file. `slots[name]` has the values by sign, or under "" without signs."""

    name: str
    language: str
    slots: Mapping[str, Mapping[str, tuple[str, ...]]]
    templates: tuple[Template, ...]
    examples: tuple[Template, ...]
    held_out_values: frozenset[str]


def load_grammars(folder: Path = GRAMMARS) -> list[Grammar]:
    """Return the grammars of a folder, by name. Those of a language hold out the same values.

    Raises:
        GrammarError: A file has a mistake.
    """
    grammars = [read_grammar(path) for path in sorted(folder.glob("*.toml"))]
    held_out = {
        language: frozenset().union(*(g.held_out_values for g in grammars if g.language == language))
        for language in LANGUAGES
    }
    return [replace(grammar, held_out_values=held_out[grammar.language]) for grammar in grammars]


def read_grammar(path: Path) -> Grammar:
    """Return the grammar of a file.

    Raises:
        GrammarError: The file has a mistake.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GrammarError(f"{path.name}: {error}") from error
    if content.get("language") not in LANGUAGES:
        raise GrammarError(f"{path.name}: language is none of {', '.join(LANGUAGES)}")
    if unknown := content.keys() - KEYS:
        raise GrammarError(f"{path.name}: unknown keys {', '.join(sorted(unknown))}")
    slots = {name: read_slot(path.name, name, values) for name, values in content.get("slots", {}).items()}
    for name, by_sign in slots.items():
        for value in (value for values in by_sign.values() for value in values):
            check_value(f"{path.name}, slot {name}, value {value!r}", value, slots)
    rows = {
        key: tuple(
            read_template(f"{path.name}, {key[:-1]} {number}", row, None if key == "examples" else slots)
            for number, row in enumerate(content.get(key, ()), 1)
        )
        for key in ("templates", "examples")
    }
    return Grammar(
        name=path.stem,
        language=content["language"],
        slots=slots,
        templates=rows["templates"],
        examples=rows["examples"],
        held_out_values=frozenset(held_out_values(slots)),
    )


def read_slot(file: str, name: str, values: Any) -> Mapping[str, tuple[str, ...]]:
    where = f"{file}, slot {name}"
    if not re.fullmatch("[a-z_]+", name) or name == ORDER:
        raise GrammarError(f"{where}: a name has small letters and underscores, and is not {ORDER}")
    by_sign = values if isinstance(values, dict) else {"": values}
    if isinstance(values, dict) and (not values or values.keys() - SIGNS.keys()):
        raise GrammarError(f"{where}: the signs are +, - and 0")
    for sign, options in by_sign.items():
        if not isinstance(options, list) or not options or not all(isinstance(value, str) for value in options):
            raise GrammarError(f"{where}{sign}: the values are a list of texts")
        if doubled := [value for value, count in Counter(options).items() if count > 1]:
            raise GrammarError(f"{where}{sign}: {doubled[0]!r} stands there twice")
    return {sign: tuple(options) for sign, options in by_sign.items()}


def check_value(where: str, value: str, slots: Mapping[str, Mapping[str, tuple[str, ...]]]) -> None:
    """Check the placeholders in a slot's value: numbers, plain slots and fixed signs, one level deep."""
    for placeholder in check_text(where, value, slots):
        inner = slots.get(placeholder.name, {})
        if placeholder.relation in ("first", "second") or (inner and "" not in inner and not placeholder.side):
            raise GrammarError(f"{where}: a value may not decide a sign of its own")
        if any("{" in text for texts in inner.values() for text in texts):
            raise GrammarError(f"{where}: {placeholder.name} has placeholders too, and one level is the limit")


def placeholders_of(text: str) -> Iterator[Placeholder]:
    for match in PLACEHOLDER.finditer(text):
        capital, relation, name, index, side = match.groups()
        yield Placeholder(bool(capital), relation or "", name, index, side)


def check_text(where: str, text: str, slots: Mapping[str, Mapping[str, tuple[str, ...]]]) -> list[Placeholder]:
    """Return the placeholders of a text after checking that each can be filled."""
    if re.search(r"[{}]", PLACEHOLDER.sub("", text)):
        raise GrammarError(f"{where}: a brace that is no placeholder")
    placeholders = list(placeholders_of(text))
    for placeholder in placeholders:
        name, side = placeholder.name, placeholder.side
        if placeholder.relation and name not in PAIRED:
            raise GrammarError(f"{where}: {placeholder.relation}: goes with {', '.join(PAIRED)}, not with {name}")
        if name not in slots and name not in NUMBERS:
            raise GrammarError(f"{where}: there is no slot {name}")
        if side and side not in slots.get(name, {}):
            raise GrammarError(f"{where}: slot {name} has no sign {side}")
    for name in {placeholder.name for placeholder in placeholders} & slots.keys():
        drawn = len({placeholder.index for placeholder in placeholders if placeholder.name == name})
        if drawn > min(map(len, slots[name].values())):
            raise GrammarError(f"{where}: slot {name} has fewer than {drawn} values")
    return placeholders


def read_template(
    file_and_number: str, row: Mapping[str, Any], slots: Mapping[str, Mapping[str, tuple[str, ...]]] | None
) -> Template:
    """Return a template of these slots, or an example, which has no placeholders, if `slots` is None."""
    text = row.get("text")
    where = f"{file_and_number} ({str(text)[:60]!r})"
    if unknown := row.keys() - TEMPLATE_KEYS:
        raise GrammarError(f"{where}: unknown keys {', '.join(sorted(unknown))}")
    if not isinstance(text, str) or not text.strip() or not isinstance(row.get("kind"), str):
        raise GrammarError(f"{where}: a kind and a text are missing")
    if ("label" in row) == ("ask" in row) or not isinstance(row.get("ask", {None: None}), dict) or row.get("ask") == {}:
        raise GrammarError(f"{where}: either label or ask, and ask is a table")
    placeholders = [] if slots is None else check_text(where, text, slots)
    rules = []
    for entity, label in row.get("ask", {None: row.get("label")}).items():
        rules.append((entity, read_rule(where, label, placeholders, slots or {})))
        names = {placeholder.name + placeholder.index for placeholder in placeholders}
        if entity is not None and (entity.casefold() not in text.casefold() if slots is None else entity not in names):
            raise GrammarError(f"{where}: the asked entity {entity!r} is not in the text")
    return Template(row["kind"], text, tuple(rules), bool(row.get("held_out", False)))


def read_rule(
    where: str,
    label: Any,
    placeholders: Sequence[Placeholder],
    slots: Mapping[str, Mapping[str, tuple[str, ...]]],
) -> LabelRule:
    if label in SENTIMENT.labels:
        return LabelRule(label, 1, ())
    signed = {p.name + p.index for p in placeholders if "" not in slots.get(p.name, {"": ()})}
    if {"first", "second"} <= {placeholder.relation for placeholder in placeholders}:
        signed.add(ORDER)
    factors = tuple(factor.strip() for factor in str(label).removeprefix("-").split("*"))
    if unknown := [factor for factor in factors if factor not in signed]:
        raise GrammarError(f"{where}: label {label!r}, but {unknown[0]!r} is neither a label nor a sign of the text")
    return LabelRule(None, -1 if str(label).startswith("-") else 1, factors)


def held_out_values(slots: Mapping[str, Mapping[str, tuple[str, ...]]]) -> Iterator[str]:
    """Yield a fifth of the values of each slot and sign, those whose hash is the lowest.

    The hash is of the value alone. So a value of several slots is mostly held out in all of them or in none.
    """
    for values in (values for by_sign in slots.values() for values in by_sign.values()):
        if len(values) >= MIN_HELD_OUT_FROM:
            yield from sorted(values, key=stable_hash)[: len(values) // HELD_OUT_SHARE]


def stable_hash(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()
