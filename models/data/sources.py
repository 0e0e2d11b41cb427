"""The rows of any source of a configuration: a data set, a file of texts, or a grammar."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from models.data.classification import Dataset, Example, find_source, read_dataset, read_texts
from models.data.grammar import GrammarExample, generate
from models.data.grammar_file import GRAMMARS, Grammar, load_grammars

FILLINGS_PER_EXAMPLE = 6
"""Fillings of a template for which an example, which cannot be filled, is repeated once."""

HELD_OUT_FILLINGS = 8
"""Fillings of each held-out template that a training measures itself on."""


def read_training(root: Path, source: Dataset, seed: int) -> list[Example]:
    """Return the training rows of a source. `seed` chooses the fillings of a grammar."""
    if source.fillings:
        rows = fill_grammar(source.name, seed, source.fillings, held_out=False)
        return [*rows, *[row for row in rows if row.is_example] * (source.fillings // FILLINGS_PER_EXAMPLE)]
    return read_texts(root, source) if source.assumed else read_dataset(root, source, "train")


def read_validation(root: Path, source: Dataset) -> list[Example]:
    """Return the validation rows of a source, for a grammar those of its held-out templates and words."""
    if source.fillings:
        return list(fill_grammar(source.name, 0, HELD_OUT_FILLINGS, held_out=True))
    return read_dataset(root, source, "validation") if source.has_validation else []


def fill_grammar(name: str, seed: int, fillings: int, held_out: bool) -> list[GrammarExample]:
    """Return rows of the grammar `name`.

    Raises:
        GrammarError: A grammar has a mistake.
    """
    return generate(shipped_grammars()[name], seed, fillings, held_out)


@cache
def shipped_grammars() -> dict[str, Grammar]:
    """Return the shipped grammars by name, read once. Each needs the others to know which words they hold out."""
    return {grammar.name: grammar for grammar in load_grammars()}


def source_files(root: Path, sources: Iterable[Dataset]) -> Iterator[Path]:
    """Yield the files of the sources, so that missing ones are named before a model is loaded."""
    for source in sources:
        if source.fillings:
            yield GRAMMARS / f"{source.name}.toml"
        elif source.assumed:
            yield find_source(root, f"{source.name}.txt.gz")
        else:
            folder = find_source(root, source.name)
            yield from (folder / f"{split}.jsonl.gz" for split in ("train", "validation"))
