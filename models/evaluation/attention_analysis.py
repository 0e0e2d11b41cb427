"""Attention analysis over many texts: words that drive each label, the roles of heads, and causes of mistakes.

Knows explanations and attention maps. Prints and draws nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.evaluation.head_ablation import (
    AblationResult,
    AblationTexts,
    HeadIndex,
    ablate_cumulatively,
    ablate_each_head,
)
from models.evaluation.influential_words import (
    MAX_MISTAKES,
    Confusion,
    ExplainedText,
    InfluentialWord,
    LabelledInstance,
    count_confusions,
    find_influential_words,
    kind_of,
    mean_shares_by_kind,
    shares_by_kind,
    words_of,
)
from models.explain.attribution import pooling_weights, value_norm
from models.explain.explainer import Explainer, attribute_to_features
from models.explain.instance import Instance

RARE_SHARE = 0.25
"""The share of all tokens that the rarest token ids make up together."""
MAX_MAPPED_TEXTS, MAX_ABLATED_TEXTS = 400, 300


@dataclass(frozen=True, slots=True)
class HeadRole:
    """The behaviour of a head, as means over tokens and texts.

    `entropy` is 1 for even attention to all tokens, and `distance` is in tokens. `itself`, `previous`, `following` and
    `separator` (the marks at both ends) are shares of attention. `rare` is the attention to rare tokens, as a multiple
    of what even attention would give them.
    """

    index: HeadIndex
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
    """The results of an analysis.

    `single` starts with the full model, then removes each head alone. `cumulative` removes more and more heads.
    `attribution_by_kind` and `attention_by_kind` hold the shares of right and of wrong answers. `mistakes` start with
    the most confident, `confusions` with the most frequent.
    """

    texts: int
    labelled: int
    wrong: int
    influential_words: dict[str, tuple[InfluentialWord, ...]]
    roles: tuple[HeadRole, ...]
    single: tuple[AblationResult, ...]
    cumulative: tuple[AblationResult, ...]
    attribution_by_kind: dict[str, tuple[float, float]]
    attention_by_kind: dict[str, tuple[float, float]]
    mistakes: tuple[ExplainedText, ...]
    confusions: tuple[Confusion, ...]


def analyze(
    graph: Path, explainer: Explainer, rows: Sequence[LabelledInstance], log: Callable[[str], None]
) -> AttentionAnalysis:
    """Analyse the answers to `rows`, whose label sets are the same.

    Attention maps and ablations use samples of the rows. `graph` is the graph that the explainer explains.
    """
    log(f"{len(rows)} texts answered, now weighing their words")
    mapped = set(random.Random(0).sample(range(len(rows)), min(MAX_MAPPED_TEXTS, len(rows))))
    explained = []
    for index, row in enumerate(rows):
        explained.append(explain_row(explainer, row, index in mapped))
        if (index + 1) % 250 == 0:
            log(f"{index + 1} texts explained")
    log(f"Attention maps of {len(mapped)} texts: the roles of heads")
    roles = head_roles(explainer, [rows[index].instance for index in sorted(mapped)])
    ablated = sorted(random.Random(1).sample(range(len(rows)), min(MAX_ABLATED_TEXTS, len(rows))))
    texts = ablation_texts([rows[index] for index in ablated])
    log(f"{len(roles)} heads, each masked in turn, on {len(ablated)} texts")
    single = tuple(ablate_each_head(graph, texts, [role.index for role in roles]))
    by_loss = [result.heads[0] for result in sorted(single[1:], key=lambda result: result.score_change)]
    wrong = [text for text in explained if text.wrong]
    right = [text for text in explained if text.row.label is not None and not text.wrong]
    return AttentionAnalysis(
        texts=len(rows),
        labelled=len(wrong) + len(right),
        wrong=len(wrong),
        influential_words=find_influential_words(explained),
        roles=roles,
        single=single,
        cumulative=tuple(ablate_cumulatively(graph, texts, by_loss)),
        attribution_by_kind=mean_shares_by_kind(
            [text.attribution_by_kind for text in right], [text.attribution_by_kind for text in wrong]
        ),
        attention_by_kind=mean_shares_by_kind(
            [text.attention_by_kind for text in right if text.attention_by_kind is not None],
            [text.attention_by_kind for text in wrong if text.attention_by_kind is not None],
        ),
        mistakes=tuple(sorted(wrong, key=lambda text: -text.explanation.scores[text.answer])[:MAX_MISTAKES]),
        confusions=count_confusions(wrong),
    )


def explain_row(explainer: Explainer, row: LabelledInstance, mapped: bool) -> ExplainedText:
    """Explain a row by the default method and, if it is `mapped`, by its attention maps too."""
    instance = row.instance
    explanation = explainer.explain(instance)
    words = words_of(instance, explanation)
    kinds = [kind_of(text) for text, _ in words]
    attention = None
    if mapped:
        token_shares = value_norm(explainer.maps(instance), pooling_weights(instance.tokens))
        weights = attribute_to_features(instance, token_shares)
        attention = shares_by_kind(
            [
                (kinds[feature.words[0]], float(weight))
                for feature, weight in zip(instance.features, weights, strict=True)
            ]
        )
    attribution = shares_by_kind([(kind, abs(word.weight)) for kind, (_, word) in zip(kinds, words, strict=True)])
    return ExplainedText(row, explanation, attribution, attention)


def head_roles(explainer: Explainer, instances: Sequence[Instance]) -> tuple[HeadRole, ...]:
    """Measure every head on the attention maps of these instances."""
    counts = Counter(int(token) for instance in instances for token in instance.tokens.ids)
    rare, covered = set[int](), 0
    for token, count in sorted(counts.items(), key=lambda item: item[1]):
        covered += count
        if covered > RARE_SHARE * counts.total():
            break
        rare.add(token)
    sums, total = np.zeros((explainer.layers, explainer.heads, 7)), 0
    for instance in instances:
        ids = instance.tokens.ids
        maps = explainer.maps(instance)
        is_rare = np.asarray([int(token) in rare for token in ids])
        for layer in range(maps.layers):
            sums[layer] += head_measures(maps.attention(layer)[0][: explainer.heads], is_rare)
        total += 1
    means = sums / total
    # Even attention gives rare tokens their share of the tokens. Both are means over the same texts.
    even = np.mean([np.mean([int(token) in rare for token in instance.tokens.ids]) for instance in instances])
    means[..., 6] /= max(float(even), 1e-9)
    return tuple(
        HeadRole((layer, head), *means[layer, head].tolist())
        for layer in range(len(means))
        for head in range(means.shape[1])
    )


def head_measures(attention: NDArray[np.float32], is_rare: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Map (heads, length, length) to the measures of a HeadRole, (heads, 7), with `rare` as a share."""
    length = attention.shape[-1]
    positions = np.arange(length)
    entropy = -(attention * np.log(np.maximum(attention, 1e-12))).sum(axis=-1).mean(axis=-1) / np.log(max(length, 2))
    distance = (attention * np.abs(positions[:, None] - positions)).sum(axis=-1).mean(axis=-1)
    near = [np.diagonal(attention, offset, 1, 2).sum(axis=-1) / length for offset in (0, -1, 1)]
    separator = attention[..., [0, -1]].sum(axis=-1).mean(axis=-1)
    return np.stack([entropy, distance, *near, separator, attention[..., is_rare].sum(axis=-1).mean(axis=-1)], axis=-1)


def ablation_texts(rows: Sequence[LabelledInstance]) -> AblationTexts:
    indices = {label: index for index, label in enumerate(rows[0].instance.scores)}
    return AblationTexts(
        tokens=tuple(row.instance.tokens for row in rows),
        score_functions=tuple(row.instance.score_function for row in rows),
        labels=np.asarray([indices.get(row.label or "", -1) for row in rows], np.int64),
        pad=rows[0].instance.pad,
    )
