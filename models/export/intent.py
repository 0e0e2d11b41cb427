"""Export of intents and replies: a training folder to a bundle with its heads, refused when the graph drifts.

Heads are made from the vectors of the graph that serves, so they know its rounding. torch is needed here for the last
time.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from models.bundle import CARD, GRAPH, TOKENIZER, Bundle, BundleError, Manifest, Source, file_digest, load_bundle
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
from models.export.card_intent import render_intent_card, with_heads
from models.export.parity import BATCH, MAX_BATCH_CHANGE, ParityError
from models.export.staging import check_graphs, make_manifest, publish, staging, write_graph
from models.export.torch_runtime import TorchRuntime
from models.networks.intent import IntentNetwork
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
"""Of a label set, from which its head is made."""

RARE = 50
"""An intent with so few rows or less keeps them all."""

COMPARED = 600
MIN_COSINE = 0.97
"""Mean over the rows compared, between a graph's vectors and torch's."""

TURNED_AWAY = 0.05
"""Share of the replies given in held-out dialogues that score under the ranker's `least`."""


def export_intents(run: Path, data: Path, out: Path, version: str, say: Callable[[str], None]) -> Bundle:
    """Write the bundle `out` from the training folder `run`; raises DriftError, and leaves `out` alone, on drift."""
    trained = load_intent_run(run)
    config, tokenizer = trained.config, Tokenizer(run / TOKENIZER, INTENT.max_tokens)
    with staging(out, run) as building:
        network = load_intent_weights(run, trained)
        rows = {source.name: read_utterances(data, source, "validation") for source in config.label_sets}
        compared = sample_rows([row for own in rows.values() for row in own])
        write_graph(network, "int8", building)
        drift, runtime = check_graphs(
            building, lambda name, runtime: check_vectors(name, network, runtime, tokenizer, compared), say
        )
        reader, encoder = TextEncoder(runtime, tokenizer), file_digest(building / GRAPH)
        make_heads(building, config.label_sets, reader, data, rows, encoder, say)
        ranker = fitted_ranker(
            network, reader, [one for own in config.reply_sets for one in read_reply_examples(data, own, "validation")]
        )
        save_ranker(ranker, building / RANKER)
        sets: list[LabelSet | ReplySet] = [*config.label_sets, *config.reply_sets]
        sources = [Source(own.name, own.language, own.licence) for own in sets]
        manifest = make_manifest(out.name, version, INTENT, trained.base, ("en", "zh"), sources)
        heads = load_bundle_heads(building, encoder)
        measured = evaluate_intents(heads, ranker, reader, data, config.label_sets, config.reply_sets)
        metrics = metrics_of_intents(out.name, measured, {own.name: own.language for own in config.label_sets})
        text = render_intent_card(manifest, measured, drift, trained)
        return publish(building, out, replace(manifest, metrics=metrics), text)


def export_heads(
    bundle: Path, data: Path, out: Path, version: str, names: Sequence[str], say: Callable[[str], None]
) -> Bundle:
    """Write the bundle `out`: the bundle `bundle`, which may be the same, with heads made anew on its graph.

    They are those of the shipped label sets `names`, of all where none is named. All else stays, with its figures; the
    encoder is the same file, so heads and reply sets that others made on it go on. Raises BundleError.
    """
    old = load_bundle(bundle)
    own = {
        source.name: source
        for source in load_shipped_sets()[0]
        if (bundle / HEADS_FOLDER / f"{source.name}{SUFFIX}").is_file()
    }
    chosen = [own[name] for name in names or own if name in own]
    if not chosen or len(chosen) < len(names):
        raise BundleError(f"bundle {old.name}: its heads are {', '.join(own) or 'none'}, not {', '.join(names)}")
    languages = {source.name: source.language for source in chosen}
    with staging(out, start=old.path) as building:
        reader = open_text_encoder(old)
        rows = {source.name: read_utterances(data, source, "validation") for source in chosen}
        make_heads(building, chosen, reader, data, rows, old.encoder_digest, say)
        ranker = load_ranker(building / RANKER)
        measured = evaluate_intents(load_bundle_heads(building, old.encoder_digest), ranker, reader, data, chosen, ())
        text = with_heads((building / CARD).read_text(encoding="utf-8"), measured)
        text = text.replace(f"# {old.name} {old.version}\n", f"# {out.name} {version}\n", 1)
        metrics = metrics_of_intents(out.name, measured, languages)
        kept = tuple(metric for metric in old.metrics if metric.dataset not in languages)
        manifest = Manifest(**{field.name: getattr(old, field.name) for field in fields(Manifest)})
        manifest = replace(manifest, name=out.name, version=version, metrics=(*metrics, *kept))
        return publish(building, out, manifest, text)


def make_heads(
    bundle: Path,
    label_sets: Sequence[LabelSet],
    reader: TextEncoder,
    data: Path,
    rows: dict[str, list[Utterance]],
    encoder: str,
    say: Callable[[str], None],
) -> None:
    """Of each label set, in the folder `bundle`; `rows` are their validation rows."""
    (bundle / HEADS_FOLDER).mkdir(exist_ok=True)
    for source in label_sets:
        head, accuracy = fit_head(source, reader, data, rows, encoder)
        save_head(head, bundle / HEADS_FOLDER / f"{source.name}{SUFFIX}")
        say(f"{source.name}: accuracy {accuracy:.4f}")


def sample_rows(rows: Sequence[Utterance]) -> list[Utterance]:
    return random.Random(0).sample(rows, min(COMPARED, len(rows)))


def check_vectors(
    name: str, network: IntentNetwork, runtime: OnnxRuntime, tokenizer: Tokenizer, rows: Sequence[Utterance]
) -> str:
    """How near the graph's vectors are to the trained network's, in a sentence; raises DriftError."""
    turns = [row.turns for row in rows]
    truth, found = (TextEncoder(one, tokenizer).encode_dialogues(turns) for one in (TorchRuntime(network), runtime))
    alone = np.concatenate([TextEncoder(runtime, tokenizer).encode_dialogues([one]) for one in turns[: 2 * BATCH]])
    cosine = float((l2_normalize(truth) * l2_normalize(found)).sum(axis=1).mean())
    change = float(np.abs(l2_normalize(alone) - l2_normalize(found[: 2 * BATCH])).max())
    if cosine < MIN_COSINE:
        raise ParityError(f"{name}: its vectors have a mean cosine of {cosine:.4f} to torch's, below {MIN_COSINE}")
    if change > MAX_BATCH_CHANGE:
        raise ParityError(f"{name}: a vector changes with its batch by {change:.5f}, over {MAX_BATCH_CHANGE}")
    return (
        f"`{name}` against the trained network in fp32 (torch), {len(rows)} validation rows: mean cosine of the "
        f"vectors {cosine:.4f}; alone and in a batch a vector of length 1 differs by at most {change:.1e} in any place."
    )


def fit_head(
    source: LabelSet, reader: TextEncoder, data: Path, held_out: dict[str, list[Utterance]], encoder: str
) -> tuple[IntentHead, float]:
    """The head of a label set, and its accuracy on the validation rows that it is calibrated on."""
    every = remove_held_out(read_utterances(data, source, "train"), held_out[source.name])
    counts = Counter(row.label for row in every if row.label is not None)
    known = [row for row in every if counts[str(row.label)] >= 2]  # of one example there is nothing to hold out
    common = [row for row in known if counts[str(row.label)] > RARE]
    chosen = random.Random(1).sample(common, min(MAX_ROWS, len(common)))
    chosen += [row for row in known if counts[str(row.label)] <= RARE]
    labels = {row.label for row in chosen}
    checked = [row for row in held_out[source.name] if row.label in labels]
    head, report = fit_intent_head(
        source.name, [source.language], encoder, examples(reader, chosen), examples(reader, checked)
    )
    return head, report.accuracy


def examples(reader: TextEncoder, rows: Sequence[Utterance]) -> Examples:
    return Examples(reader.encode_dialogues([row.turns for row in rows]), tuple(str(row.label) for row in rows))


def fitted_ranker(network: IntentNetwork, reader: TextEncoder, exchanges: Sequence[ReplyExample]) -> ReplyRanker:
    """The projections, and the scores as probabilities among what was offered (Platt scaling)."""
    dialogue, reply = (one.weight.detach().numpy().T for one in (network.dialogue, network.reply))
    plain = ReplyRanker(dialogue, reply, 1.0, 0.0, 0.0)
    offered = [one for one in exchanges if len(one.options) > 1]
    texts = sorted({text for one in offered for text in one.options})
    placed = dict(zip(texts, plain.project_replies(reader.encode_texts(texts)), strict=True))
    said = l2_normalize(reader.encode_dialogues([one.turns for one in offered]) @ dialogue)
    cosines = [
        np.asarray([float(vector @ placed[t]) for t in one.options]) for one, vector in zip(offered, said, strict=True)
    ]
    right = np.concatenate([[text == one.template for text in one.options] for one in offered])
    model = LogisticRegression(C=1e6).fit(np.concatenate(cosines)[:, None], right)
    slope, offset = float(model.coef_[0, 0]), float(model.intercept_[0])
    given = 1 / (1 + np.exp(-(slope * np.concatenate(cosines)[right] + offset)))
    return ReplyRanker(dialogue, reply, slope, offset, float(np.quantile(given, TURNED_AWAY)))
