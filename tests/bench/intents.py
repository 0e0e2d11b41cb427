"""What the shipped intents and replies cannot show of themselves: intents never seen, and simpler ways beside ours.

Run with `make bench-intents BASE=encoder DATA=folder`; an hour on two cores. Three parts:
few examples: heads of 10 examples an intent, on the encoder as it was before any of these sets, three drawings;
open intents: a quarter of the intents known, the encoder's upper layers fine-tuned on those and on texts of other sets,
all other intents to be found out of scope (Zhang et al. 2021, adaptive decision boundary), three drawings;
replies: BM25, and the encoder as it was.
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
from models.export.torch_runtime import TorchRuntime
from models.networks.encoder import base_file, load_base_encoder
from models.networks.intent import OUT_OF_SCOPE, IntentNetwork, IntentRow
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
from tests.bench.upper import Known, UpperNetwork

SEEDS = 3
SHOTS = 10
KNOWN = 0.25
EPOCHS = 3
REJECTED = 0.1
"""Share of the texts in scope that the open-intent threshold turns away: three of four texts are out of scope there."""

OPEN = ("banking77", "clinc150")
STRANGERS = {"banking77": ("clinc150", "dstc11"), "clinc150": ("banking77", "dstc11")}
"""Sets whose texts are shown as none of the known intents (outlier exposure); never texts of the set itself."""

STRANGER_ROWS = 2000
WAYS = ("as served", "nearest example")
Texts = NDArray[np.floating]


class Bench:
    def __init__(self, base: str, data: Path, folder: Path) -> None:
        self.base, self.data, self.folder = base, data, folder
        self.config: IntentConfig = read_intent_config(CONFIGS / "intent.toml")[0]
        adapt_tokenizer(base_file(base, TOKENIZER), folder / TOKENIZER)
        self.tokenizer = Tokenizer(folder / TOKENIZER, self.config.max_tokens)

        self.known_states: Known = {}

    def network(self, labels: int) -> IntentNetwork:
        encoder = load_base_encoder(self.base)
        return UpperNetwork(encoder, encoder.config.hidden_size, {"known": labels}, self.known_states)

    def reader(self, network: IntentNetwork) -> TextEncoder:
        return TextEncoder(TorchRuntime(network), self.tokenizer)

    def rows(self, name: str, part: str) -> list[Utterance]:
        (source,) = (one for one in self.config.label_sets if one.name == name)
        return read_utterances(self.data, source, part)

    def few(self) -> Iterator[str]:
        yield "| 10 examples an intent | accuracy, mean of 3 drawings |"
        yield "|---|--:|"
        reader = self.reader(self.network(2))
        for name in OPEN:
            every = [row for row in self.rows(name, "train") if row.label is not None]
            asked = [row for row in self.rows(name, "validation") if row.label is not None]
            vectors = reader.encode_dialogues([row.turns for row in asked])
            found = [accuracy(self._shots(reader, every, seed), vectors, asked) for seed in range(SEEDS)]
            yield f"| {name} | {np.mean(found):.3f} ({', '.join(f'{one:.3f}' for one in found)}) |"

    def _shots(self, reader: TextEncoder, every: Sequence[Utterance], seed: int) -> IntentHead:
        taken: Counter[str | None] = Counter()
        chosen = []
        for row in random.Random(seed).sample(every, len(every)):
            if taken[row.label] < SHOTS:
                taken[row.label] += 1
                chosen.append(row)
        return fit_intent_head("known", ["en"], "0" * 64, examples_of(reader, chosen), None, REJECTED)[0]

    def open(self) -> Iterator[str]:
        yield "| a quarter known | out of scope by | accuracy | macro-F1 | AUROC | in scope, turned away |"
        yield "|---|---|--:|--:|--:|--:|"
        for name in OPEN:
            found = []
            for seed in range(SEEDS):
                found.append(self._opened(name, seed))
                yield from figures_rows(f"{name}, drawing {seed + 1}", found[-1])
            yield from figures_rows(f"{name}, mean", np.mean(found, axis=0))

    def _opened(self, name: str, seed: int) -> NDArray[np.float64]:
        """Of each of WAYS: accuracy and macro-F1, what is none of the intents being one more, AUROC, turned away."""
        train, asked = self.rows(name, "train"), self.rows(name, "validation")
        labels = sorted({row.label for row in train if row.label is not None})
        known = sorted(random.Random(seed).sample(labels, round(KNOWN * len(labels))))
        own = [row for row in train if row.label in known]
        held_out = own[::10]  # for the threshold: the validation file is what is asked
        own = [row for number, row in enumerate(own) if number % 10]
        reader = self.reader(self._tuned(name, own, known, seed))
        taught, kept = examples_of(reader, own), examples_of(reader, held_out)
        head, _ = fit_intent_head("known", ["en"], "0" * 64, taught, kept, REJECTED)
        vectors = reader.encode_dialogues([row.turns for row in asked])
        verdicts = predict_intents(head, vectors)
        near, held = (nearest(head, taught.vectors, rows) for rows in (vectors, kept.vectors))
        inside = np.asarray([row.label in known for row in asked])
        truth = np.asarray([str(row.label) if within else "none" for row, within in zip(asked, inside, strict=True)])
        best = np.asarray(head.labels)[verdicts.confidences.argmax(axis=1)]
        found = []
        for scores, threshold in (
            (verdicts.out_of_scope_scores, head.threshold),
            (near, np.quantile(held, 1 - REJECTED)),
        ):
            away = scores > threshold
            answers = np.where(away, "none", best)
            macro = f1_score(truth, answers, average="macro")
            found.append(((truth == answers).mean(), macro, roc_auc_score(~inside, scores), away[inside].mean()))
        return np.asarray(found)

    def _tuned(self, name: str, own: Sequence[Utterance], known: Sequence[str], seed: int) -> IntentNetwork:
        """Fine-tuned on the known intents, with texts of other sets that are none of them."""
        chance = random.Random(seed)
        strange = [row for other in STRANGERS[name] for row in self.rows(other, "train")]
        strange = random.Random(0).sample(strange, min(STRANGER_ROWS, len(strange)))
        told = [(row, known.index(str(row.label))) for row in own] + [(row, OUT_OF_SCOPE) for row in strange]
        rows = [IntentRow(self.tokenizer.encode(row.turns[-1].text), "known", label) for row, label in told]
        config = replace(self.config, warmup_steps=20, validate_every=10**9, checkpoint_every=100, seed=seed)
        batches: list[list[Any]] = []
        for _ in range(EPOCHS):
            chance.shuffle(rows)
            batches += batch_by_length(rows, config, chance)
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
        (source,) = (one for one in self.config.reply_sets if one.kind == "star")
        exchanges, templates = (
            read_reply_examples(self.data, source, "validation"),
            read_reply_templates(self.data, source),
        )
        yield "| replies | first among those offered | recall@1 | recall@5 |"
        yield "|---|--:|--:|--:|"
        untuned = ReplyRanker(
            *(np.eye(self.network(2).encoder.config.hidden_size, dtype=np.float32),) * 2, 10.0, 0.0, 0.0
        )
        found = measure_replies(untuned, self.reader(self.network(2)), exchanges, templates)
        yield f"| the encoder as it was | {found.first_offered:.3f} | {found.recall_1:.3f} | {found.recall_5:.3f} |"
        scores = bm25([one.turns[-1].text for one in exchanges], templates)
        place = {text: number for number, text in enumerate(templates)}
        right = np.asarray([row[place[str(one.template)]] for one, row in zip(exchanges, scores, strict=True)])
        ranks = (scores > right[:, None]).sum(axis=1)
        firsts = [
            own >= max(row[place[text]] for text in one.options)
            for one, row, own in zip(exchanges, scores, right, strict=True)
            if len(one.options) > 1
        ]
        yield f"| BM25 | {np.mean(firsts):.3f} | {(ranks < 1).mean():.3f} | {(ranks < 5).mean():.3f} |"


def bm25(queries: Sequence[str], texts: Sequence[str], k: float = 1.5, b: float = 0.75) -> NDArray[np.float64]:
    """(queries, texts) scores (Robertson et al. 1994)."""
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


def nearest(head: IntentHead, taught: Texts, vectors: Texts) -> NDArray[np.floating]:
    """How far each vector is from the nearest of those taught, (vectors,), by the cosine."""
    cosines = normalize_centered(vectors, head.center) @ normalize_centered(taught, head.center).T
    return np.asarray(1 - cosines.max(axis=1))


def figures_rows(name: str, found: NDArray[np.float64]) -> Iterator[str]:
    for way, values in zip(WAYS, found, strict=True):
        yield "| " + " | ".join((name, way, *(f"{value:.3f}" for value in values))) + " |"


def accuracy(head: IntentHead, vectors: Texts, rows: Sequence[Utterance]) -> float:
    best = predict_intents(head, vectors).confidences.argmax(axis=1)
    return float(np.mean([head.labels[place] == row.label for place, row in zip(best, rows, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-intents", description=__doc__)
    parser.add_argument("--base", required=True, help="the encoder before any of these sets")
    parser.add_argument("--data", type=Path, required=True, help="folder of the intent data sets")
    parser.add_argument("--parts", nargs="+", choices=("few", "open", "replies"), default=("few", "open", "replies"))
    parser.add_argument("--keep", type=Path, help="where fine-tuned encoders stay; a stopped run goes on from there")
    given = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(given.base, given.data, folder)
        for part in given.parts:
            for line in getattr(bench, part)():
                print(line, flush=True)
            print(flush=True)


if __name__ == "__main__":
    main()
