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
from shutil import copyfile, copytree, rmtree

import numpy as np
from sklearn.linear_model import LogisticRegression

from models.bundle import CARD, GRAPH, TOKENIZER, Bundle, BundleError, Manifest, Source, digest_of, load, save
from models.data.dialogues import (
    Exchange,
    LabelSet,
    ReplySet,
    Utterance,
    read_exchanges,
    read_utterances,
    shipped_sets,
    without_held_out,
)
from models.evaluation.intent import evaluate_intents, metrics_of_intents
from models.export.card_intent import card, with_heads
from models.export.parity import BATCH, DriftError
from models.export.torch_runtime import TorchRuntime
from models.graph.builder import build, write
from models.networks.encoder import base_file, graph_weights
from models.networks.intent import IntentNetwork
from models.prediction.intent_head import HEADS, SUFFIX, Head, heads_of, save_head
from models.prediction.intent_head_fit import Examples, make
from models.prediction.normalize import unit
from models.prediction.reply_ranker import RANKER, Ranker, load_ranker, save_ranker
from models.runtime.cuda import ON_GPUS, in_16_bits
from models.runtime.offline import Reader, open_reader
from models.runtime.onnx import OnnxRuntime
from models.tasks import INTENT
from models.text.tokenizer import Tokenizer
from models.training.intent import load_intent_run, load_intent_weights
from models.training.trainer import WEIGHTS

MOST_ROWS = 16_000
"""Of a label set, from which its head is made."""

RARE = 50
"""An intent with so few rows or less keeps them all."""

COMPARED = 600
LEAST_COSINE = 0.97
"""Mean over the rows compared, between a graph's vectors and torch's."""

MOST_BATCH_CHANGE = 1e-3
TURNED_AWAY = 0.05
"""Share of the replies given in held-out dialogues that score under the ranker's `least`."""


def export_intents(run: Path, data: Path, out: Path, version: str, say: Callable[[str], None]) -> Bundle:
    """Write the bundle `out` from the training folder `run`; raises DriftError, and leaves `out` alone, on drift."""
    trained = load_intent_run(run)
    config, tokenizer = trained.config, Tokenizer(run / TOKENIZER, INTENT.max_tokens)
    building = out.with_name(out.name + ".building")
    rmtree(building, ignore_errors=True)
    (building / HEADS).mkdir(parents=True)
    copyfile(run / TOKENIZER, building / TOKENIZER)
    network = load_intent_weights(run, trained)
    rows = {source.name: read_utterances(data, source, "validation") for source in config.label_sets}
    compared = sample([row for own in rows.values() for row in own])
    write_intent_graph(network, building / GRAPH)
    drift = []
    for name, way in ((GRAPH, building / GRAPH), (ON_GPUS, in_16_bits(building / GRAPH))):
        drift.append(check_vectors(name, network, OnnxRuntime(way, threads=0), tokenizer, compared))
        say(drift[-1])
    reader = Reader(OnnxRuntime(building / GRAPH, threads=0), tokenizer)
    encoder = digest_of(building / GRAPH)
    make_heads(building, config.label_sets, reader, data, rows, encoder, say)
    ranker = fitted_ranker(
        network, reader, [one for own in config.reply_sets for one in read_exchanges(data, own, "validation")]
    )
    save_ranker(ranker, building / RANKER)
    sources: list[LabelSet | ReplySet] = [*config.label_sets, *config.reply_sets]
    manifest = Manifest(
        name=out.name,
        version=version,
        task=INTENT,
        languages=("en", "zh"),
        max_tokens=INTENT.max_tokens,
        base=Path(trained.base).name,
        base_digest=digest_of(base_file(trained.base, WEIGHTS)),
        calibration={},
        sources=tuple(Source(own.name, own.language, own.licence) for own in sources),
        metrics=(),
    )
    measured = evaluate_intents(heads_of(building, encoder), ranker, reader, data, config.label_sets, config.reply_sets)
    (building / CARD).write_text(card(manifest, measured, drift, trained), encoding="utf-8")
    metrics = metrics_of_intents(out.name, measured, {own.name: own.language for own in config.label_sets})
    return put(building, out, replace(manifest, metrics=metrics))


def export_heads(
    bundle: Path, data: Path, out: Path, version: str, names: Sequence[str], say: Callable[[str], None]
) -> Bundle:
    """Write the bundle `out`: the bundle `bundle`, which may be the same, with heads made anew on its graph.

    They are those of the shipped label sets `names`, of all where none is named. All else stays, with its figures; the
    encoder is the same file, so heads and reply sets that others made on it go on. Raises BundleError.
    """
    old = load(bundle)
    own = {source.name: source for source in shipped_sets()[0] if (bundle / HEADS / f"{source.name}{SUFFIX}").is_file()}
    chosen = [own[name] for name in names or own if name in own]
    if not chosen or len(chosen) < len(names):
        raise BundleError(f"bundle {old.name}: its heads are {', '.join(own) or 'none'}, not {', '.join(names)}")
    building = out.with_name(out.name + ".building")
    rmtree(building, ignore_errors=True)
    copytree(old.path, building)
    reader = open_reader(old)
    rows = {source.name: read_utterances(data, source, "validation") for source in chosen}
    make_heads(building, chosen, reader, data, rows, old.encoder, say)
    ranker = load_ranker(building / RANKER)
    measured = evaluate_intents(heads_of(building, old.encoder), ranker, reader, data, chosen, ())
    text = with_heads((building / CARD).read_text(encoding="utf-8"), measured)
    text = text.replace(f"# {old.name} {old.version}\n", f"# {out.name} {version}\n", 1)
    (building / CARD).write_text(text, encoding="utf-8")
    metrics = metrics_of_intents(out.name, measured, {source.name: source.language for source in chosen})
    kept = tuple(metric for metric in old.metrics if metric.dataset not in {source.name for source in chosen})
    manifest = Manifest(**{field.name: getattr(old, field.name) for field in fields(Manifest)})
    return put(building, out, replace(manifest, name=out.name, version=version, metrics=(*metrics, *kept)))


def put(building: Path, out: Path, manifest: Manifest) -> Bundle:
    """All of `building` in the place of `out`, once the manifest holds."""
    save(building, manifest)
    rmtree(out, ignore_errors=True)
    building.rename(out)
    return save(out, manifest)


def make_heads(
    bundle: Path,
    label_sets: Sequence[LabelSet],
    reader: Reader,
    data: Path,
    rows: dict[str, list[Utterance]],
    encoder: str,
    say: Callable[[str], None],
) -> None:
    """Of each label set, in the folder `bundle`; `rows` are their validation rows."""
    for source in label_sets:
        head, accuracy = made(source, reader, data, rows, encoder)
        save_head(head, bundle / HEADS / f"{source.name}{SUFFIX}")
        say(f"{source.name}: accuracy {accuracy:.4f}")


def write_intent_graph(network: IntentNetwork, path: Path) -> None:
    config = network.encoder.config
    write(build(graph_weights(network), config.num_attention_heads, config.layer_norm_eps, "int8"), path)


def sample(rows: Sequence[Utterance]) -> list[Utterance]:
    return random.Random(0).sample(rows, min(COMPARED, len(rows)))


def check_vectors(
    name: str, network: IntentNetwork, runtime: OnnxRuntime, tokenizer: Tokenizer, rows: Sequence[Utterance]
) -> str:
    """How near the graph's vectors are to the trained network's, in a sentence; raises DriftError."""
    turns = [row.turns for row in rows]
    truth, found = (Reader(one, tokenizer).dialogues(turns) for one in (TorchRuntime(network), runtime))
    alone = np.concatenate([Reader(runtime, tokenizer).dialogues([one]) for one in turns[: 2 * BATCH]])
    cosine = float((unit(truth) * unit(found)).sum(axis=1).mean())
    change = float(np.abs(unit(alone) - unit(found[: 2 * BATCH])).max())
    if cosine < LEAST_COSINE:
        raise DriftError(f"{name}: its vectors have a mean cosine of {cosine:.4f} to torch's, below {LEAST_COSINE}")
    if change > MOST_BATCH_CHANGE:
        raise DriftError(f"{name}: a vector changes with its batch by {change:.5f}, over {MOST_BATCH_CHANGE}")
    return (
        f"`{name}` against the trained network in fp32 (torch), {len(rows)} validation rows: mean cosine of the "
        f"vectors {cosine:.4f}; alone and in a batch a vector of length 1 differs by at most {change:.1e} in any place."
    )


def made(
    source: LabelSet, reader: Reader, data: Path, held_out: dict[str, list[Utterance]], encoder: str
) -> tuple[Head, float]:
    """The head of a label set, and its accuracy on the validation rows that it is calibrated on."""
    every = without_held_out(read_utterances(data, source, "train"), held_out[source.name])
    counts = Counter(row.label for row in every if row.label is not None)
    known = [row for row in every if counts[str(row.label)] >= 2]  # of one example there is nothing to hold out
    common = [row for row in known if counts[str(row.label)] > RARE]
    chosen = random.Random(1).sample(common, min(MOST_ROWS, len(common)))
    chosen += [row for row in known if counts[str(row.label)] <= RARE]
    labels = {row.label for row in chosen}
    checked = [row for row in held_out[source.name] if row.label in labels]
    head, report = make(source.name, [source.language], encoder, examples(reader, chosen), examples(reader, checked))
    return head, report.accuracy


def examples(reader: Reader, rows: Sequence[Utterance]) -> Examples:
    return Examples(reader.dialogues([row.turns for row in rows]), tuple(str(row.label) for row in rows))


def fitted_ranker(network: IntentNetwork, reader: Reader, exchanges: Sequence[Exchange]) -> Ranker:
    """The projections, and the scores as probabilities among what was offered (Platt scaling)."""
    dialogue, reply = (one.weight.detach().numpy().T for one in (network.dialogue, network.reply))
    plain = Ranker(dialogue, reply, 1.0, 0.0, 0.0)
    offered = [one for one in exchanges if len(one.options) > 1]
    texts = sorted({text for one in offered for text in one.options})
    placed = dict(zip(texts, plain.place(reader.texts(texts)), strict=True))
    said = unit(reader.dialogues([one.turns for one in offered]) @ dialogue)
    cosines = [
        np.asarray([float(vector @ placed[t]) for t in one.options]) for one, vector in zip(offered, said, strict=True)
    ]
    right = np.concatenate([[text == one.template for text in one.options] for one in offered])
    model = LogisticRegression(C=1e6).fit(np.concatenate(cosines)[:, None], right)
    slope, offset = float(model.coef_[0, 0]), float(model.intercept_[0])
    given = 1 / (1 + np.exp(-(slope * np.concatenate(cosines)[right] + offset)))
    return Ranker(dialogue, reply, slope, offset, float(np.quantile(given, TURNED_AWAY)))
