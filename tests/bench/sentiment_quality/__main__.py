"""Sentiment beside word lists and small models: validation sets, and the capability tests without entities.

Run with `make bench-peers-quality DATA="folder ..."`. The peers run in an environment of their own.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sklearn.metrics import f1_score

from models.behaviour.answers import Answers, TextCase
from models.behaviour.report import markdown_table
from models.bundle import SHIPPED, load_bundle
from models.data.classification import LABEL_NAMES
from models.data.grammar import generate
from models.data.grammar_file import load_grammars
from models.tasks import SENTIMENT
from models.text.language import detect_language, has_text

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv" / "bench-sentiment" / "bin" / "python"
SCRIPT = Path(__file__).parent / "peers" / "word_lists.py"
HEED = "Heed"
COLUMNS = (HEED, "VADER", "TextBlob", "AFINN", "SnowNLP", "cnsenti")
MIN_LANGUAGE_SHARE = 0.2
"""A data set of two languages has a row for each, if the rarer one has this share."""


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text with its label. `table` is `data set` or `capability`, and `name` the set or the kind."""

    table: str
    name: str
    language: str
    text: str
    label: str


def read_sets(folders: Iterable[Path], rows: int) -> Iterator[LabelledText]:
    """Yield at most `rows` validation rows of each set that labels whole texts with labels of the task.

    A folder holds the folders of sets, or folders of these.
    """
    for path in sorted(path for folder in folders for path in folder.rglob("validation.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            content = [json.loads(line) for line in lines]
        labels = [LABEL_NAMES.get(str(row.get("label")), str(row.get("label"))) for row in content]
        if not set(labels) <= set(SENTIMENT.labels) or any("entity" in row for row in content):
            continue
        texts = [(row["text"], label) for row, label in zip(content, labels, strict=True) if has_text(row["text"])]
        chosen = random.Random(0).sample(texts, min(rows, len(texts)))
        languages = [detect_language(text) for text, _ in chosen]
        ((main, _), *_) = counts = Counter(languages).most_common()
        is_mixed = len(counts) > 1 and counts[1][1] >= MIN_LANGUAGE_SHARE * len(chosen)
        for (text, label), language in zip(chosen, languages, strict=True):
            yield LabelledText("data set", path.parent.name, language if is_mixed else main, text, label)


def capability_texts(per_template: int) -> Iterator[LabelledText]:
    """Yield the held-out rows of the grammars that ask about no entity."""
    for grammar in load_grammars():
        for row in generate(grammar, 0, per_template, held_out=True):
            if row.entity is None:
                yield LabelledText("capability", row.kind, row.language, row.text, str(row.label))


def ask_peers(texts: Sequence[LabelledText]) -> list[dict[str, str]]:
    """Return the label of each text by peer of its language."""
    lines = "".join(json.dumps({"text": text.text, "language": text.language}) + "\n" for text in texts)
    done = subprocess.run([PYTHON, "-W", "ignore", SCRIPT], input=lines, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def table(texts: Sequence[LabelledText], answers: Sequence[Mapping[str, str]]) -> str:
    """Return a Markdown table: macro-F1 and accuracy by data set, and the failure rate by capability."""
    members: dict[tuple[str, str, str], list[int]] = {}
    for index, text in enumerate(texts):
        members.setdefault((text.table, text.language, text.name), []).append(index)
    lines = []
    for (kind, language, name), indices in sorted(members.items(), key=lambda item: (item[0][0] != "data set", item)):
        labels = [texts[index].label for index in indices]
        by_peer = {
            peer: cell(kind, labels, [answers[index][peer] for index in indices]) for peer in answers[indices[0]]
        }
        unit = "macro-F1 (accuracy)" if kind == "data set" else "failures"
        lines.append([name, language, str(len(indices)), unit, *(by_peer.get(peer, "–") for peer in COLUMNS)])
    return markdown_table(["texts", "language", "n", "figure", *COLUMNS], lines)


def cell(kind: str, labels: Sequence[str], answered: Sequence[str]) -> str:
    right = sum(label == answer for label, answer in zip(labels, answered, strict=True)) / len(labels)
    if kind == "capability":
        return f"{1 - right:.1%}"
    f1 = f1_score(labels, answered, labels=sorted(set(labels)), average="macro", zero_division=0.0)
    return f"{f1:.3f} ({right:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of data sets, or of such folders")
    parser.add_argument("--bundle", type=Path, default=SHIPPED, help="bundle of sentiment")
    parser.add_argument("--rows", type=int, default=500, help="validation rows of each data set")
    parser.add_argument("--per-template", type=int, default=5, help="fillings of each held-out template")
    options = parser.parse_args()
    texts = [*read_sets(options.data, options.rows), *capability_texts(options.per_template)]
    bundle = load_bundle(options.bundle)
    ours = Answers(bundle).answered([TextCase(text.text, None) for text in texts])
    answers = [{HEED: label, **theirs} for label, theirs in zip(ours, ask_peers(texts), strict=True)]
    print(f"{bundle.name} {bundle.version}, at most {options.rows} validation rows a set\n\n{table(texts, answers)}")


if __name__ == "__main__":
    main()
