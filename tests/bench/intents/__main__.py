"""Intents and replies that the shipped evaluation does not cover: unseen intents, and simpler methods beside ours.

Run with `make bench-intents BASE=encoder DATA=folder`; an hour on two cores. It has three parts:
- few: heads of 10 examples per intent on the base encoder, for three samples.
- open: a quarter of the intents is known. The encoder's upper layers are fine-tuned on them and on texts of other sets.
  All other intents are out of scope (Zhang et al. 2021, adaptive decision boundary), for three samples.
- replies: BM25, and the base encoder.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from sklearn.metrics import f1_score, roc_auc_score

from models.bundle import TOKENIZER
from models.data.dialogues import Utterance, read_reply_examples, read_reply_templates, read_utterances
from models.evaluation.intent import measure_replies
from models.networks.encoder import base_file, load_base_encoder
from models.networks.intent import OUT_OF_SCOPE, IntentNetwork, IntentRow
from models.networks.torch_runtime import TorchRuntime
from models.prediction.intent_head import IntentHead, predict_intents
from models.prediction.intent_head_fit import Examples, fit_intent_head
from models.prediction.normalize import normalize_centered
from models.prediction.reply_ranker import ReplyRanker
from models.runtime.offline import TextEncoder
from models.text.tokenizer import Tokenizer, adapt_tokenizer
from models.training.classification import CONFIGS
from models.training.intent import TokenEncoder, intent_or_reply_loss
from models.training.intent_batches import IntentConfig, read_intent_config
from models.training.trainer import WEIGHTS, DeviceCollator, Trainer, batch_by_length, choose_device
from tests.bench.harness.frozen_encoder import StateCache, UpperNetwork

SEEDS = 3
SHOTS = 10
KNOWN_SHARE = 0.25
EPOCHS = 3
REJECTION_RATE = 0.1
"""Rejection rate of texts in scope for open intents, where three of four texts are out of scope."""

OPEN = ("banking77", "clinc150")
OUTLIER_SETS = {"banking77": ("clinc150", "dstc11"), "clinc150": ("banking77", "dstc11")}
"""Sets whose texts are out-of-scope examples (outlier exposure). A set never includes itself."""

OUTLIER_ROWS = 2000
SCORINGS = ("as served", "nearest example")
Texts = NDArray[np.floating]


class Bench:
    def __init__(self, base: str, data: Path, folder: Path) -> None:
        self.base, self.data, self.folder = base, data, folder
        self.config: IntentConfig = read_intent_config(CONFIGS / "intent.toml")[0]
        adapt_tokenizer(base_file(base, TOKENIZER), folder / TOKENIZER)
        self.tokenizer = Tokenizer(folder / TOKENIZER, self.config.max_tokens)

        self.known_states: StateCache = {}

    def network(self, labels: int) -> IntentNetwork:
        encoder = load_base_encoder(self.base)
        return UpperNetwork(encoder, encoder.config.hidden_size, {"known": labels}, self.known_states)

    def reader(self, network: IntentNetwork) -> TextEncoder:
        return TextEncoder(TorchRuntime(network), self.tokenizer)

    def rows(self, name: str, split: str) -> list[Utterance]:
        (source,) = (label_set for label_set in self.config.label_sets if label_set.name == name)
        return read_utterances(self.data, source, split)

    def few(self) -> Iterator[str]:
        yield "| 10 examples per intent | accuracy, mean of 3 samples |"
        yield "|---|--:|"
        reader = self.reader(self.network(2))
        for name in OPEN:
            examples = [row for row in self.rows(name, "train") if row.label is not None]
            queries = [row for row in self.rows(name, "validation") if row.label is not None]
            vectors = reader.encode_dialogues([row.turns for row in queries])
            accuracies = [
                accuracy(self._fit_few_shot_head(reader, examples, seed), vectors, queries) for seed in range(SEEDS)
            ]
            yield f"| {name} | {np.mean(accuracies):.3f} ({', '.join(f'{value:.3f}' for value in accuracies)}) |"

    def _fit_few_shot_head(self, reader: TextEncoder, rows: Sequence[Utterance], seed: int) -> IntentHead:
        counts: Counter[str | None] = Counter()
        examples = []
        for row in random.Random(seed).sample(rows, len(rows)):
            if counts[row.label] < SHOTS:
                counts[row.label] += 1
                examples.append(row)
        return fit_intent_head("known", ["en"], "0" * 64, examples_of(reader, examples), None, REJECTION_RATE)[0]

    def open(self) -> Iterator[str]:
        yield "| a quarter known | out of scope by | accuracy | macro-F1 | AUROC | in scope, rejected |"
        yield "|---|---|--:|--:|--:|--:|"
        for name in OPEN:
            figures = []
            for seed in range(SEEDS):
                figures.append(self._measure_open(name, seed))
                yield from figures_rows(f"{name}, sample {seed + 1}", figures[-1])
            yield from figures_rows(f"{name}, mean", np.mean(figures, axis=0))

    def _measure_open(self, name: str, seed: int) -> NDArray[np.float64]:
        """Return accuracy, macro-F1, AUROC and rejections in scope for each scoring. Out of scope counts as a label."""
        train, queries = self.rows(name, "train"), self.rows(name, "validation")
        labels = sorted({row.label for row in train if row.label is not None})
        known = sorted(random.Random(seed).sample(labels, round(KNOWN_SHARE * len(labels))))
        known_rows = [row for row in train if row.label in known]
        held_out = known_rows[::10]  # for the threshold, because the validation file is the test set
        known_rows = [row for index, row in enumerate(known_rows) if index % 10]
        reader = self.reader(self._fine_tune(name, known_rows, known, seed))
        examples, held_out_examples = examples_of(reader, known_rows), examples_of(reader, held_out)
        head, _ = fit_intent_head("known", ["en"], "0" * 64, examples, held_out_examples, REJECTION_RATE)
        vectors = reader.encode_dialogues([row.turns for row in queries])
        head_predictions = predict_intents(head, vectors)
        distances, held_out_distances = (
            nearest_distances(head, examples.vectors, rows) for rows in (vectors, held_out_examples.vectors)
        )
        is_known = np.asarray([row.label in known for row in queries])
        expected = np.asarray(
            [str(row.label) if in_scope else "none" for row, in_scope in zip(queries, is_known, strict=True)]
        )
        predictions = np.asarray(head.labels)[head_predictions.confidences.argmax(axis=1)]
        figures = []
        for scores, threshold in (
            (head_predictions.out_of_scope_scores, head.threshold),
            (distances, np.quantile(held_out_distances, 1 - REJECTION_RATE)),
        ):
            rejected = scores > threshold
            labels_or_none = np.where(rejected, "none", predictions)
            macro = f1_score(expected, labels_or_none, average="macro")
            figures.append(
                (
                    (expected == labels_or_none).mean(),
                    macro,
                    roc_auc_score(~is_known, scores),
                    rejected[is_known].mean(),
                )
            )
        return np.asarray(figures)

    def _fine_tune(self, name: str, known_rows: Sequence[Utterance], known: Sequence[str], seed: int) -> IntentNetwork:
        """Return a network fine-tuned on the known intents, with texts of other sets as out-of-scope examples."""
        rng = random.Random(seed)
        outliers = [row for other in OUTLIER_SETS[name] for row in self.rows(other, "train")]
        outliers = random.Random(0).sample(outliers, min(OUTLIER_ROWS, len(outliers)))
        labelled = [(row, known.index(str(row.label))) for row in known_rows] + [
            (row, OUT_OF_SCOPE) for row in outliers
        ]
        rows = [IntentRow(self.tokenizer.encode(row.turns[-1].text), "known", label) for row, label in labelled]
        config = replace(self.config, warmup_steps=20, validate_every=10**9, checkpoint_every=100, seed=seed)
        batches: list[list[Any]] = []
        for _ in range(EPOCHS):
            rng.shuffle(rows)
            batches += batch_by_length(rows, config, rng)
        network = self.network(len(known))
        vectors = TokenEncoder(network, DeviceCollator(self.tokenizer, choose_device()), False)
        out = self.folder / f"{name}-{seed}"
        if (out / WEIGHTS).exists():
            network.load_state_dict(load_file(out / WEIGHTS))
            return network.eval()
        out.mkdir(exist_ok=True)
        trainer = Trainer(
            config,
            network,
            lambda batch: intent_or_reply_loss(network, vectors, batch),
            lambda: iter(()),
            out,
            len(batches),
        )
        trainer.run(batches)
        return network.eval()

    def replies(self) -> Iterator[str]:
        (source,) = (reply_set for reply_set in self.config.reply_sets if reply_set.kind == "star")
        examples, templates = (
            read_reply_examples(self.data, source, "validation"),
            read_reply_templates(self.data, source),
        )
        yield "| replies | first among the options | recall@1 | recall@5 |"
        yield "|---|--:|--:|--:|"
        untuned = ReplyRanker(
            *(np.eye(self.network(2).encoder.config.hidden_size, dtype=np.float32),) * 2, 10.0, 0.0, 0.0
        )
        report = measure_replies(untuned, self.reader(self.network(2)), examples, templates)
        yield f"| the base encoder | {report.first_offered:.3f} | {report.recall_1:.3f} | {report.recall_5:.3f} |"
        scores = bm25([example.turns[-1].text for example in examples], templates)
        columns = {text: column for column, text in enumerate(templates)}
        targets = np.asarray(
            [row[columns[str(example.template)]] for example, row in zip(examples, scores, strict=True)]
        )
        ranks = (scores > targets[:, None]).sum(axis=1)
        firsts = [
            target >= max(row[columns[text]] for text in example.options)
            for example, row, target in zip(examples, scores, targets, strict=True)
            if len(example.options) > 1
        ]
        yield f"| BM25 | {np.mean(firsts):.3f} | {(ranks < 1).mean():.3f} | {(ranks < 5).mean():.3f} |"


def bm25(queries: Sequence[str], texts: Sequence[str], k: float = 1.5, b: float = 0.75) -> NDArray[np.float64]:
    """Return the BM25 scores (queries, texts) of Robertson et al. 1994."""
    bags = [Counter(words(text)) for text in texts]
    lengths = np.asarray([sum(bag.values()) for bag in bags])
    frequency = Counter(word for bag in bags for word in bag)
    rows = np.zeros((len(queries), len(texts)))
    for row, query in zip(rows, queries, strict=True):
        for word in set(words(query)) & frequency.keys():
            counts = np.asarray([bag[word] for bag in bags])
            weight = math.log(1 + (len(texts) - frequency[word] + 0.5) / (frequency[word] + 0.5))
            row += weight * counts * (k + 1) / (counts + k * (1 - b + b * lengths / lengths.mean()))
    return rows


def words(text: str) -> list[str]:
    return ["".join(filter(str.isalnum, word)) for word in text.casefold().split()]


def examples_of(reader: TextEncoder, rows: Sequence[Utterance]) -> Examples:
    return Examples(reader.encode_dialogues([row.turns for row in rows]), tuple(str(row.label) for row in rows))


def nearest_distances(head: IntentHead, examples: Texts, vectors: Texts) -> NDArray[np.floating]:
    """Return the cosine distance of each vector from the nearest training vector, (vectors,)."""
    cosines = normalize_centered(vectors, head.center) @ normalize_centered(examples, head.center).T
    return np.asarray(1 - cosines.max(axis=1))


def figures_rows(name: str, figures: NDArray[np.float64]) -> Iterator[str]:
    for scoring, values in zip(SCORINGS, figures, strict=True):
        yield "| " + " | ".join((name, scoring, *(f"{value:.3f}" for value in values))) + " |"


def accuracy(head: IntentHead, vectors: Texts, rows: Sequence[Utterance]) -> float:
    best = predict_intents(head, vectors).confidences.argmax(axis=1)
    return float(np.mean([head.labels[index] == row.label for index, row in zip(best, rows, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-intents", description=__doc__)
    parser.add_argument("--base", required=True, help="the encoder before training on these sets")
    parser.add_argument("--data", type=Path, required=True, help="folder of the intent data sets")
    parser.add_argument("--parts", nargs="+", choices=("few", "open", "replies"), default=("few", "open", "replies"))
    parser.add_argument(
        "--keep", type=Path, help="folder for fine-tuned encoders; an interrupted run continues from it"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(options.base, options.data, folder)
        for part in options.parts:
            for line in getattr(bench, part)():
                print(line, flush=True)
            print(flush=True)


if __name__ == "__main__":
    main()
