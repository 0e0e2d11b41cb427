"""What a model attends to over many texts: words that drive each label, what heads do, and where mistakes come from.

Knows explanations and maps; prints and draws nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.evaluation.head_ablation import AblationResult, HeadIndex, Texts, ablate_cumulatively, ablate_each_head
from models.evaluation.influential_words import (
    MAX_MISTAKES,
    Confusion,
    ExplainedText,
    InfluentialWord,
    LabelledInstance,
    confusions,
    influential_words,
    kind_of,
    kind_shares,
    shares,
    words_of,
)
from models.explain.attribution import pooling_weights, value_norm
from models.explain.explainer import DEFAULT_METHOD, Explainer, attribute_to_features
from models.explain.instance import Instance

RARE = 0.25
"""Share of all tokens that the rarest kinds of them make up."""
MAX_MAPPED_TEXTS, MAX_ABLATED_TEXTS = 400, 300


@dataclass(frozen=True, slots=True)
class HeadRole:
    """What a head does, in the mean over tokens and texts; all but `distance` and `rare` are shares.

    `entropy` 1 is even attention to all tokens, `distance` is in tokens; `itself`, `previous`, `following` and
    `separator` (the marks at both ends) are where attention goes; `rare` is what rare tokens get beside what even
    attention would give them.
    """

    place: HeadIndex
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
class AttentionAnalysis:
    """`single` begins with nothing masked, `cumulative` takes away ever more heads; `mistakes` are the surest first,
    `confusions` the most frequent."""

    texts: int
    labelled: int
    wrong: int
    driving: dict[str, tuple[InfluentialWord, ...]]
    roles: tuple[HeadRole, ...]
    single: tuple[AblationResult, ...]
    cumulative: tuple[AblationResult, ...]
    rested: dict[str, tuple[float, float]]
    looked: dict[str, tuple[float, float]]
    mistakes: tuple[ExplainedText, ...]
    confusions: tuple[Confusion, ...]


def analyze(
    graph: Path, explainer: Explainer, rows: Sequence[LabelledInstance], say: Callable[[str], None]
) -> AttentionAnalysis:
    """The texts whose maps are read, and those answered without heads, are drawn of `rows`; their labels are the same.

    `graph` is the one that the explainer explains.
    """
    say(f"{len(rows)} texts answered; weighing their words")
    mapped = set(random.Random(0).sample(range(len(rows)), min(MAX_MAPPED_TEXTS, len(rows))))
    told = []
    for number, row in enumerate(rows):
        told.append(explain_row(explainer, row, number in mapped))
        if (number + 1) % 250 == 0:
            say(f"{number + 1} weighed")
    say(f"Maps of {len(mapped)} texts: what heads do")
    roles = head_roles(explainer, [rows[number].instance for number in sorted(mapped)])
    asked = sorted(random.Random(1).sample(range(len(rows)), min(MAX_ABLATED_TEXTS, len(rows))))
    texts = texts_of([rows[number] for number in asked])
    say(f"{len(roles)} heads, each masked in turn, on {len(asked)} texts")
    single = tuple(ablate_each_head(graph, texts, [role.place for role in roles]))
    by_loss = [one.heads[0] for one in sorted(single[1:], key=lambda one: one.score_change)]
    wrong = [one for one in told if one.wrong]
    right = [one for one in told if one.row.label is not None and not one.wrong]
    return AttentionAnalysis(
        texts=len(rows),
        labelled=len(wrong) + len(right),
        wrong=len(wrong),
        driving=influential_words(told),
        roles=roles,
        single=single,
        cumulative=tuple(ablate_cumulatively(graph, texts, by_loss)),
        rested=kind_shares([one.rested for one in right], [one.rested for one in wrong]),
        looked=kind_shares(
            [one.looked for one in right if one.looked is not None],
            [one.looked for one in wrong if one.looked is not None],
        ),
        mistakes=tuple(sorted(wrong, key=lambda one: -one.explanation.scores[one.answer])[:MAX_MISTAKES]),
        confusions=confusions(wrong),
    )


def explain_row(explainer: Explainer, row: LabelledInstance, mapped: bool) -> ExplainedText:
    question = row.instance
    found = explainer.explain(question, DEFAULT_METHOD)
    words = words_of(question, found)
    kinds = [kind_of(text) for text, _ in words]
    looked = None
    if mapped:
        taken = attribute_to_features(question, value_norm(explainer.maps(question), pooling_weights(question.tokens)))
        spread = [(kinds[part.words[0]], float(weight)) for part, weight in zip(question.features, taken, strict=True)]
        looked = shares(spread)
    rested = shares([(kind, abs(word.weight)) for kind, (_, word) in zip(kinds, words, strict=True)])
    return ExplainedText(row, found, rested, looked)


def head_roles(explainer: Explainer, questions: Sequence[Instance]) -> tuple[HeadRole, ...]:
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
            sums[layer] += head_measures(maps.attention(layer)[0][: explainer.heads], uncommon)
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


def head_measures(attention: NDArray[np.float32], uncommon: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(heads, length, length) to (heads, 7): the measures of a HeadRole, `rare` as a share."""
    length = attention.shape[-1]
    places = np.arange(length)
    entropy = -(attention * np.log(np.maximum(attention, 1e-12))).sum(axis=-1).mean(axis=-1) / np.log(max(length, 2))
    distance = (attention * np.abs(places[:, None] - places)).sum(axis=-1).mean(axis=-1)
    near = [np.diagonal(attention, by, 1, 2).sum(axis=-1) / length for by in (0, -1, 1)]
    separator = attention[..., [0, -1]].sum(axis=-1).mean(axis=-1)
    return np.stack([entropy, distance, *near, separator, attention[..., uncommon].sum(axis=-1).mean(axis=-1)], axis=-1)


def texts_of(rows: Sequence[LabelledInstance]) -> Texts:
    places = {label: number for number, label in enumerate(rows[0].instance.scores)}
    return Texts(
        tokens=tuple(row.instance.tokens for row in rows),
        scored=tuple(row.instance.scored for row in rows),
        labels=np.asarray([places.get(row.label or "", -1) for row in rows], np.int64),
        pad=rows[0].instance.pad,
    )
