"""Export: a training folder to a bundle, refused when the graph that would serve answers otherwise than torch.

Builds each graph, compares it with the trained network over the whole validation data, calibrates, evaluates and
writes the card. Knows all of `models/`; torch is needed here for the last time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import copyfile, rmtree

from models.bundle import CARD, GRAPH, TOKENIZER, Bundle, Manifest, Source, digest_of, save
from models.data.classification import Dataset, read
from models.evaluation.classification import CONFUSION, answer, draw_confusion, measure, metrics_of
from models.export.card_classification import card
from models.export.parity import BATCH, HALVED, ROUNDED, Bounds, batch_change, check, drift
from models.export.torch_runtime import TorchRuntime
from models.graph.builder import build, write
from models.graph.writer import Storage
from models.networks.encoder import Classifier, base_file, graph_weights
from models.prediction.calibration_fit import crossfit, fit
from models.runtime.cuda import ON_GPUS, in_16_bits
from models.runtime.onnx import OnnxRuntime
from models.tasks import TASKS
from models.text.encoding import Tokens
from models.text.tokenizer import Tokenizer
from models.training.classification import load_run, load_weights
from models.training.trainer import WEIGHTS

BATCHES_COMPARED = 20


def export(
    run: Path,
    data: Path,
    out: Path,
    version: str,
    storage: Storage,
    teacher: Bundle | None,
    say: Callable[[str], None],
) -> Bundle:
    """Write the bundle `out` from the training folder `run`; raises DriftError, and leaves `out` alone, on drift.

    `storage` is that of the graph's weights; the card of a student compares it with its `teacher`.
    """
    trained = load_run(run)
    task, datasets, tokenizer = (
        TASKS[trained.config.task],
        trained.config.datasets,
        Tokenizer(run / TOKENIZER, TASKS[trained.config.task].max_tokens),
    )
    building = out.with_name(out.name + ".building")
    rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    copyfile(run / TOKENIZER, building / TOKENIZER)

    network = load_weights(run, trained, task)
    truth = answer(TorchRuntime(network), tokenizer, task, data, datasets)
    say("answered the validation data with torch in fp32")
    mixed = sample(tokenizer, data, datasets)
    write_graph(network, storage, building / GRAPH)
    ways: dict[str, tuple[Path | bytes, Bounds]] = {
        GRAPH: (building / GRAPH, ROUNDED),
        ON_GPUS: (in_16_bits(building / GRAPH), HALVED),
    }
    answers, drifts = {}, {}
    for name, (graph, bounds) in ways.items():
        runtime = OnnxRuntime(graph, threads=0)
        answers[name] = answer(runtime, tokenizer, task, data, datasets)
        drifts[name] = drift(truth, answers[name], batch_change(runtime, mixed, tokenizer.pad), task)
        check(name, drifts[name], bounds)
        say(f"{name}: {drifts[name]}")

    calibration = fit(answers[GRAPH])
    measured = [measure(rows, calibration, task) for rows in answers[GRAPH]]
    draw_confusion(measured, task, building / CONFUSION)
    manifest = Manifest(
        name=out.name,
        version=version,
        task=task,
        languages=tuple(sorted({dataset.language for dataset in datasets})),
        max_tokens=task.max_tokens,
        base=Path(trained.base).name,
        base_digest=digest_of(base_file(trained.base, WEIGHTS)),
        calibration=calibration,
        sources=tuple(Source(own.name, own.language, own.licence) for own in (*datasets, *trained.texts)),
        metrics=metrics_of(out.name, measured),
    )
    errors = crossfit(answers[GRAPH])
    text = card(manifest, measured, errors, drifts, trained, teacher, storage)
    (building / CARD).write_text(text, encoding="utf-8")
    save(building, manifest)
    rmtree(out, ignore_errors=True)
    building.rename(out)
    return save(out, manifest)


def write_graph(network: Classifier, storage: Storage, path: Path) -> None:
    config = network.encoder.config
    if config.hidden_act != "gelu":
        raise ValueError(f"the base uses {config.hidden_act}: only encoders of the BERT family with gelu are exported")
    weights = graph_weights(network)
    write(build(weights, config.num_attention_heads, config.layer_norm_eps, storage), path)


def sample(tokenizer: Tokenizer, data: Path, datasets: Sequence[Dataset]) -> list[Tokens]:
    """Validation texts of all sets and lengths, shuffled, so that every batch of them is mixed."""
    chance = random.Random(0)
    rows = [example for dataset in datasets for example in read(data, dataset, "validation")]
    chosen = chance.sample(rows, min(len(rows), BATCH * BATCHES_COMPARED))
    return [tokenizer.encode(example.text, example.entity) for example in chosen]
