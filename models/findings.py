"""What a model attends to over many texts: words that drive each label, what heads do, and where mistakes come from.

Knows explanations and maps; prints and draws nothing.
"""

from __future__ import annotations

import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.explain import AUTO, Explainer, Explanation, Weight, by_part
from models.masking import Masked, Place, Texts, each_head, together
from models.question import Question
from models.weighing import readers, value_norm
from models.words import HAN, LINKED

LEAST_TEXTS = 3
"""In which a word must be, to be said to drive anything."""

LEAST_WEIGHT = 0.01
"""And that it must have in their mean."""

RARE = 0.25
"""Share of all tokens that the rarest kinds of them make up."""

MISTAKES = 15
MOST_MAPPED, MOST_MASKED = 400, 300
MOST_WORDS, MOST_WORDS_OF_MANY, FEW_LABELS = 20, 8, 6
"""Words that are told of each label, where there are few of these and where there are many."""

KINDS = ("letters", "Chinese", "number", "punctuation", "link", "other")


@dataclass(frozen=True, slots=True)
class Known:
    """A text or dialogue as a question; `label` is the right answer, where that is known, `entity` who it is about."""

    question: Question
    label: str | None
    entity: str | None = None


@dataclass(frozen=True, slots=True)
class Driving:
    """A word, the mean of its weights for the label that was answered, and in how many texts it was."""

    word: str
    weight: float
    texts: int


@dataclass(frozen=True, slots=True)
class HeadRole:
    """What a head does, in the mean over tokens and texts; all but `distance` and `rare` are shares.

    `entropy` 1 is even attention to all tokens, `distance` is in tokens; `itself`, `previous`, `following` and
    `separator` (the marks at both ends) are where attention goes; `rare` is what rare tokens get beside what even
    attention would give them.
    """

    place: Place
    entropy: float
    distance: float
    itself: float
    previous: float
    following: float
    separator: float
    rare: float

    @property
    def role(self) -> str:
        if self.separator > 0.5:
            return "separator"
        for name, share in (("itself", self.itself), ("previous", self.previous), ("following", self.following)):
            if share > 0.4:
                return name
        if self.rare > 1.5:
            return "rare words"
        return "broad" if self.entropy > 0.85 else "mixed"


@dataclass(frozen=True, slots=True)
class Told:
    """One text as it was answered and explained; `looked` and `rested` are shares by kind of word."""

    row: Known
    explanation: Explanation
    rested: dict[str, float]
    looked: dict[str, float] | None

    @property
    def answer(self) -> str:
        return self.explanation.target

    @property
    def wrong(self) -> bool:
        return self.row.label is not None and self.answer != self.row.label


@dataclass(frozen=True, slots=True)
class Confusion:
    """How many texts with one label were given another answer."""

    label: str
    answer: str
    texts: int


@dataclass(frozen=True, slots=True)
class Findings:
    """`single` begins with nothing masked, `cumulative` takes away ever more heads; `mistakes` are the surest first,
    `confusions` the most frequent."""

    texts: int
    labelled: int
    wrong: int
    driving: dict[str, tuple[Driving, ...]]
    roles: tuple[HeadRole, ...]
    single: tuple[Masked, ...]
    cumulative: tuple[Masked, ...]
    rested: dict[str, tuple[float, float]]
    looked: dict[str, tuple[float, float]]
    mistakes: tuple[Told, ...]
    confusions: tuple[Confusion, ...]


def find(graph: Path, explainer: Explainer, rows: Sequence[Known], say: Callable[[str], None]) -> Findings:
    """The texts whose maps are read, and those answered without heads, are drawn of `rows`; their labels are the same.

    `graph` is the one that the explainer explains.
    """
    say(f"{len(rows)} texts answered; weighing their words")
    mapped = set(random.Random(0).sample(range(len(rows)), min(MOST_MAPPED, len(rows))))
    told = []
    for number, row in enumerate(rows):
        told.append(tell(explainer, row, number in mapped))
        if (number + 1) % 250 == 0:
            say(f"{number + 1} weighed")
    say(f"Maps of {len(mapped)} texts: what heads do")
    roles = head_roles(explainer, [rows[number].question for number in sorted(mapped)])
    asked = sorted(random.Random(1).sample(range(len(rows)), min(MOST_MASKED, len(rows))))
    texts = texts_of([rows[number] for number in asked])
    say(f"{len(roles)} heads, each masked in turn, on {len(asked)} texts")
    single = tuple(each_head(graph, texts, [role.place for role in roles]))
    by_loss = [one.heads[0] for one in sorted(single[1:], key=lambda one: one.moved)]
    wrong = [one for one in told if one.wrong]
    right = [one for one in told if one.row.label is not None and not one.wrong]
    return Findings(
        texts=len(rows),
        labelled=len(wrong) + len(right),
        wrong=len(wrong),
        driving=driving(told),
        roles=roles,
        single=single,
        cumulative=tuple(together(graph, texts, by_loss)),
        rested=beside([one.rested for one in right], [one.rested for one in wrong]),
        looked=beside(
            [one.looked for one in right if one.looked is not None],
            [one.looked for one in wrong if one.looked is not None],
        ),
        mistakes=tuple(sorted(wrong, key=lambda one: -one.explanation.scores[one.answer])[:MISTAKES]),
        confusions=confusions(wrong),
    )


def tell(explainer: Explainer, row: Known, mapped: bool) -> Told:
    question = row.question
    found = explainer.explain(question, AUTO)
    words = words_of(question, found)
    kinds = [kind_of(text) for text, _ in words]
    looked = None
    if mapped:
        taken = by_part(question, value_norm(explainer.maps(question), readers(question.tokens)))
        spread = [(kinds[part.words[0]], float(weight)) for part, weight in zip(question.parts, taken, strict=True)]
        looked = shares(spread)
    rested = shares([(kind, abs(word.weight)) for kind, (_, word) in zip(kinds, words, strict=True)])
    return Told(row, found, rested, looked)


def words_of(question: Question, explanation: Explanation) -> list[tuple[str, Weight]]:
    """Through all passages."""
    return [
        (own.text[word.start : word.end], word)
        for own, passage in zip(question.reading.passages, explanation.passages, strict=True)
        for word in passage.words
    ]


def kind_of(word: str) -> str:
    if LINKED.match(word):
        return "link"
    if HAN.match(word):
        return "Chinese"
    if any(c.isdigit() for c in word):
        return "number"
    if word[0].isalpha():
        return "letters"
    category = unicodedata.category(word[0])
    return "punctuation" if category[0] in "PS" and category != "So" else "other"  # "So": pictures


def shares(weights: Sequence[tuple[str, float]]) -> dict[str, float]:
    """By kind, of their sum."""
    found = dict.fromkeys(KINDS, 0.0)
    whole = sum(weight for _, weight in weights) or 1.0
    for kind, weight in weights:
        found[kind] += weight / whole
    return found


def beside(right: Sequence[dict[str, float]], wrong: Sequence[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """The mean share of each kind where answers are right, and where they are wrong; nothing without both."""
    if not right or not wrong:
        return {}
    return {
        kind: (float(np.mean([one[kind] for one in right])), float(np.mean([one[kind] for one in wrong])))
        for kind in KINDS
    }


def confusions(wrong: Sequence[Told]) -> tuple[Confusion, ...]:
    counts = Counter((str(one.row.label), one.answer) for one in wrong)
    return tuple(Confusion(label, answer, texts) for (label, answer), texts in counts.most_common(MISTAKES))


def driving(told: Sequence[Told]) -> dict[str, tuple[Driving, ...]]:
    """By label: the words that spoke for it most, in the mean over the texts that were given it."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in told:
        own: dict[str, float] = defaultdict(float)
        for shown, word in words_of(one.row.question, one.explanation):
            text = shown.casefold()
            if not word.named and kind_of(text) not in ("punctuation", "link", "other"):
                own[text] += word.weight
        for text, weight in own.items():
            found[one.answer][text].append(weight)
    most = MOST_WORDS if len(found) <= FEW_LABELS else MOST_WORDS_OF_MANY
    return {
        label: tuple(
            sorted(
                (
                    Driving(word, float(np.mean(weights)), len(weights))
                    for word, weights in found[label].items()
                    if len(weights) >= LEAST_TEXTS and np.mean(weights) >= LEAST_WEIGHT
                ),
                key=lambda one: -one.weight,
            )[:most]
        )
        for label in sorted(found)
    }


def head_roles(explainer: Explainer, questions: Sequence[Question]) -> tuple[HeadRole, ...]:
    counts = Counter(int(number) for question in questions for number in question.tokens.ids)
    rare, covered = set[int](), 0
    for number, count in sorted(counts.items(), key=lambda item: item[1]):
        covered += count
        if covered > RARE * counts.total():
            break
        rare.add(number)
    sums, total = np.zeros((explainer.layers, explainer.heads, 7)), 0
    for question in questions:
        ids = question.tokens.ids
        maps = explainer.maps(question)
        uncommon = np.asarray([int(number) in rare for number in ids])
        for layer in range(maps.layers):
            sums[layer] += measures(maps.attention(layer)[0][: explainer.heads], uncommon)
        total += 1
    means = sums / total
    # What rare tokens get, beside what even attention would give them: both are means over the same texts.
    even = np.mean([np.mean([int(number) in rare for number in question.tokens.ids]) for question in questions])
    means[..., 6] /= max(float(even), 1e-9)
    return tuple(
        HeadRole((layer, head), *means[layer, head].tolist())
        for layer in range(len(means))
        for head in range(means.shape[1])
    )


def measures(attention: NDArray[np.float32], uncommon: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(heads, length, length) to (heads, 7): the measures of a HeadRole, `rare` as a share."""
    length = attention.shape[-1]
    places = np.arange(length)
    entropy = -(attention * np.log(np.maximum(attention, 1e-12))).sum(axis=-1).mean(axis=-1) / np.log(max(length, 2))
    distance = (attention * np.abs(places[:, None] - places)).sum(axis=-1).mean(axis=-1)
    near = [np.diagonal(attention, by, 1, 2).sum(axis=-1) / length for by in (0, -1, 1)]
    separator = attention[..., [0, -1]].sum(axis=-1).mean(axis=-1)
    return np.stack([entropy, distance, *near, separator, attention[..., uncommon].sum(axis=-1).mean(axis=-1)], axis=-1)


def texts_of(rows: Sequence[Known]) -> Texts:
    places = {label: number for number, label in enumerate(rows[0].question.scores)}
    return Texts(
        tokens=tuple(row.question.tokens for row in rows),
        scored=tuple(row.question.scored for row in rows),
        labels=np.asarray([places.get(row.label or "", -1) for row in rows], np.int64),
        pad=rows[0].question.pad,
    )
