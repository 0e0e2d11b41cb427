"""Export of intents and replies: a training folder becomes a bundle with its heads, unless the graph drifts.

Heads are fitted on the vectors of the graph that serves, so they include its rounding. Serving needs no torch.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from models.bundle import (
    CARD,
    GRAPH,
    TOKENIZER,
    Bundle,
    BundleError,
    Manifest,
    Source,
    encoder_digest,
    file_digest,
    load_bundle,
)
from models.data.dialogues import (
    LabelSet,
    ReplyExample,
    ReplySet,
    Utterance,
    load_shipped_sets,
    read_reply_examples,
    read_utterances,
    remove_held_out,
)
from models.evaluation.intent import evaluate_intents, metrics_of_intents
from models.export.card_intent import render_intent_card, update_heads
from models.export.parity import BATCH, MAX_BATCH_CHANGE, ParityError
from models.export.staging import check_graphs, make_manifest, publish, staging, write_graph
from models.networks.intent import IntentNetwork
from models.networks.torch_runtime import TorchRuntime
from models.prediction.intent_head import HEADS_FOLDER, SUFFIX, IntentHead, load_bundle_heads, save_head
from models.prediction.intent_head_fit import Examples, fit_intent_head
from models.prediction.normalize import l2_normalize
from models.prediction.reply_ranker import RANKER, ReplyRanker, load_ranker, save_ranker
from models.runtime.offline import TextEncoder, open_text_encoder
from models.runtime.onnx import OnnxRuntime
from models.tasks import INTENT
from models.text.tokenizer import Tokenizer
from models.training.intent import load_intent_run, load_intent_weights

MAX_ROWS = 16_000
"""Rows of common intents from which a head is fitted."""

MAX_RARE_ROWS = 50
"""An intent with at most this many rows is rare. All of its rows are used."""

COMPARED_ROWS = 600
MIN_COSINE = 0.97
"""The least mean cosine between the vectors of a graph and of torch on the compared rows."""

REPLY_REJECTION_RATE = 0.05
"""Share of the actual replies in held-out dialogues that score below the ranker's `min_score`."""


def export_intents(run: Path, data: Path, out: Path, version: str, log: Callable[[str], None]) -> Bundle:
    """Write the bundle `out` from the training folder `run`.

    Raises ParityError if the graph drifts, and then leaves `out` alone.
    """
    trained = load_intent_run(run)
    config, tokenizer = trained.config, Tokenizer(run / TOKENIZER, INTENT.max_tokens)
    with staging(out, run) as building:
        network = load_intent_weights(run, trained)
        rows = {source.name: read_utterances(data, source, "validation") for source in config.label_sets}
        compared = sample_rows([row for held_out in rows.values() for row in held_out])
        write_graph(network, "int8", building)
        parity, runtime = check_graphs(
            building, lambda name, runtime: check_vectors(name, network, runtime, tokenizer, compared), log
        )
        reader, encoder = (
            TextEncoder(runtime, tokenizer),
            encoder_digest(file_digest(building / GRAPH), tokenizer.reading),
        )
        fit_heads(building, config.label_sets, reader, data, rows, encoder, log)
        exchanges = [row for source in config.reply_sets for row in read_reply_examples(data, source, "validation")]
        ranker = fit_ranker(network, reader, exchanges)
        save_ranker(ranker, building / RANKER)
        sets: list[LabelSet | ReplySet] = [*config.label_sets, *config.reply_sets]
        sources = [Source(source.name, source.language, source.licence) for source in sets]
        manifest = make_manifest(out.name, version, INTENT, trained.base, ("en", "zh"), sources)
        heads = load_bundle_heads(building, encoder)
        measured = evaluate_intents(heads, ranker, reader, data, config.label_sets, config.reply_sets)
        metrics = metrics_of_intents(out.name, measured, {source.name: source.language for source in config.label_sets})
        text = render_intent_card(manifest, measured, parity, trained)
        return publish(building, out, replace(manifest, metrics=metrics), text)


def export_heads(
    bundle: Path, data: Path, out: Path, version: str, names: Sequence[str], log: Callable[[str], None]
) -> Bundle:
    """Write the bundle `out`: a copy of `bundle` with heads fitted anew on its graph. Both may be the same folder.

    `names` are shipped label sets, and no names mean all of them. The encoder and the figures of all further sets stay,
    so heads and reply sets that teams made for this encoder remain valid. Raises BundleError.
    """
    old = load_bundle(bundle)
    shipped = {source.name: source for source in load_shipped_sets()[0]}
    present = {
        name: source for name, source in shipped.items() if (bundle / HEADS_FOLDER / f"{name}{SUFFIX}").is_file()
    }
    chosen = [present[name] for name in names or present if name in present]
    if not chosen or len(chosen) < len(names):
        raise BundleError(f"bundle {old.name}: its heads are {', '.join(present) or 'none'}, not {', '.join(names)}")
    languages = {source.name: source.language for source in chosen}
    with staging(out, start=old.path) as building:
        reader = open_text_encoder(old)
        rows = {source.name: read_utterances(data, source, "validation") for source in chosen}
        fit_heads(building, chosen, reader, data, rows, old.encoder_digest, log)
        ranker = load_ranker(building / RANKER)
        measured = evaluate_intents(load_bundle_heads(building, old.encoder_digest), ranker, reader, data, chosen, ())
        text = update_heads((building / CARD).read_text(encoding="utf-8"), measured)
        text = text.replace(f"# {old.name} {old.version}\n", f"# {out.name} {version}\n", 1)
        metrics = metrics_of_intents(out.name, measured, languages)
        unchanged = tuple(metric for metric in old.metrics if metric.dataset not in languages)
        manifest = Manifest(**{field.name: getattr(old, field.name) for field in fields(Manifest)})
        manifest = replace(manifest, name=out.name, version=version, metrics=(*metrics, *unchanged))
        return publish(building, out, manifest, text)


def fit_heads(
    bundle: Path,
    label_sets: Sequence[LabelSet],
    reader: TextEncoder,
    data: Path,
    rows: dict[str, list[Utterance]],
    encoder: str,
    log: Callable[[str], None],
) -> None:
    """Fit and save the head of each label set in the folder `bundle`. `rows` are their validation rows."""
    (bundle / HEADS_FOLDER).mkdir(exist_ok=True)
    for source in label_sets:
        head, accuracy = fit_head(source, reader, data, rows, encoder)
        save_head(head, bundle / HEADS_FOLDER / f"{source.name}{SUFFIX}")
        log(f"{source.name}: accuracy {accuracy:.4f}")


def sample_rows(rows: Sequence[Utterance]) -> list[Utterance]:
    return random.Random(0).sample(rows, min(COMPARED_ROWS, len(rows)))


def check_vectors(
    name: str, network: IntentNetwork, runtime: OnnxRuntime, tokenizer: Tokenizer, rows: Sequence[Utterance]
) -> str:
    """Return a sentence on how close the graph's vectors are to the trained network's. Raises ParityError."""
    dialogues = [row.turns for row in rows]
    reference, encoder = TextEncoder(TorchRuntime(network), tokenizer), TextEncoder(runtime, tokenizer)
    expected, vectors = reference.encode_dialogues(dialogues), encoder.encode_dialogues(dialogues)
    alone = np.concatenate([encoder.encode_dialogues([turns]) for turns in dialogues[: 2 * BATCH]])
    cosine = float((l2_normalize(expected) * l2_normalize(vectors)).sum(axis=1).mean())
    change = float(np.abs(l2_normalize(alone) - l2_normalize(vectors[: 2 * BATCH])).max())
    if cosine < MIN_COSINE:
        raise ParityError(f"{name}: its vectors have a mean cosine of {cosine:.4f} to torch's, below {MIN_COSINE}")
    if change > MAX_BATCH_CHANGE:
        raise ParityError(f"{name}: a vector changes with its batch by {change:.5f}, over {MAX_BATCH_CHANGE}")
    return (
        f"`{name}` against the trained network in fp32 (torch), {len(rows)} validation rows: the mean cosine of the "
        f"vectors is {cosine:.4f}. Alone and in a batch, a component of a unit vector differs by at most {change:.1e}."
    )


def fit_head(
    source: LabelSet, reader: TextEncoder, data: Path, held_out: dict[str, list[Utterance]], encoder: str
) -> tuple[IntentHead, float]:
    """Return the head of a label set, and its accuracy on the validation rows that it is calibrated on."""
    rows = remove_held_out(read_utterances(data, source, "train"), held_out[source.name])
    counts = Counter(row.label for row in rows if row.label is not None)
    usable = [row for row in rows if counts[str(row.label)] >= 2]  # a single example cannot be held out
    common = [row for row in usable if counts[str(row.label)] > MAX_RARE_ROWS]
    chosen = random.Random(1).sample(common, min(MAX_ROWS, len(common)))
    chosen += [row for row in usable if counts[str(row.label)] <= MAX_RARE_ROWS]
    labels = {row.label for row in chosen}
    validation = [row for row in held_out[source.name] if row.label in labels]
    head, report = fit_intent_head(
        source.name, [source.language], encoder, encode_rows(reader, chosen), encode_rows(reader, validation)
    )
    return head, report.accuracy


def encode_rows(reader: TextEncoder, rows: Sequence[Utterance]) -> Examples:
    return Examples(reader.encode_dialogues([row.turns for row in rows]), tuple(str(row.label) for row in rows))


def fit_ranker(network: IntentNetwork, reader: TextEncoder, exchanges: Sequence[ReplyExample]) -> ReplyRanker:
    """Return the ranker with scores calibrated as probabilities among the offered replies (Platt scaling)."""
    dialogue, reply = (layer.weight.detach().numpy().T for layer in (network.dialogue, network.reply))
    uncalibrated = ReplyRanker(dialogue, reply, 1.0, 0.0, 0.0)
    choices = [row for row in exchanges if len(row.options) > 1]
    texts = sorted({text for row in choices for text in row.options})
    projected = dict(zip(texts, uncalibrated.project_replies(reader.encode_texts(texts)), strict=True))
    contexts = l2_normalize(reader.encode_dialogues([row.turns for row in choices]) @ dialogue)
    cosines = [
        np.asarray([float(context @ projected[text]) for text in row.options])
        for row, context in zip(choices, contexts, strict=True)
    ]
    right = np.concatenate([[text == row.template for text in row.options] for row in choices])
    model = LogisticRegression(C=1e6).fit(np.concatenate(cosines)[:, None], right)
    slope, offset = float(model.coef_[0, 0]), float(model.intercept_[0])
    actual_scores = 1 / (1 + np.exp(-(slope * np.concatenate(cosines)[right] + offset)))
    return ReplyRanker(dialogue, reply, slope, offset, float(np.quantile(actual_scores, REPLY_REJECTION_RATE)))
