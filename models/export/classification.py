"""Export: a training folder to a bundle, refused when the graph that would serve answers otherwise than torch.

Builds each graph, compares it with the trained network over the whole validation data, calibrates, evaluates and
writes the card. Knows all of `models/`; torch is needed here for the last time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from models.bundle import GRAPH, TOKENIZER, Bundle, Source
from models.data.classification import Dataset, read
from models.evaluation.classification import CONFUSION, answer, draw_confusion, measure, metrics_of
from models.export.card_classification import card
from models.export.parity import BATCH, HALVED, ROUNDED, Drift, batch_change, check, drift
from models.export.staging import manifest_of, publish, runtimes, staging, write_graph
from models.export.torch_runtime import TorchRuntime
from models.graph.writer import Storage
from models.prediction.calibration_fit import Answers, crossfit, fit
from models.runtime.cuda import ON_GPUS
from models.tasks import TASKS
from models.text.encoding import Tokens
from models.text.tokenizer import Tokenizer
from models.training.classification import load_run, load_weights

BOUNDS = {GRAPH: ROUNDED, ON_GPUS: HALVED}
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
    task, datasets = TASKS[trained.config.task], trained.config.datasets
    tokenizer = Tokenizer(run / TOKENIZER, task.max_tokens)
    with staging(out, run) as building:
        network = load_weights(run, trained, task)
        truth = answer(TorchRuntime(network), tokenizer, task, data, datasets)
        say("answered the validation data with torch in fp32")
        mixed = sample(tokenizer, data, datasets)
        write_graph(network, storage, building)
        answers: dict[str, list[Answers]] = {}
        drifts: dict[str, Drift] = {}
        for name, runtime in runtimes(building):
            answers[name] = answer(runtime, tokenizer, task, data, datasets)
            drifts[name] = drift(truth, answers[name], batch_change(runtime, mixed, tokenizer.pad), task)
            check(name, drifts[name], BOUNDS[name])
            say(f"{name}: {drifts[name]}")

        calibration = fit(answers[GRAPH])
        measured = [measure(rows, calibration, task) for rows in answers[GRAPH]]
        draw_confusion(measured, task, building / CONFUSION)
        languages = sorted({dataset.language for dataset in datasets})
        sources = [Source(own.name, own.language, own.licence) for own in (*datasets, *trained.texts)]
        manifest = manifest_of(out.name, version, task, trained.base, languages, sources)
        manifest = replace(manifest, calibration=calibration, metrics=metrics_of(out.name, measured))
        text = card(manifest, measured, crossfit(answers[GRAPH]), drifts, trained, teacher, storage)
        return publish(building, out, manifest, text)


def sample(tokenizer: Tokenizer, data: Path, datasets: Sequence[Dataset]) -> list[Tokens]:
    """Validation texts of all sets and lengths, shuffled, so that every batch of them is mixed."""
    chance = random.Random(0)
    rows = [example for dataset in datasets for example in read(data, dataset, "validation")]
    chosen = chance.sample(rows, min(len(rows), BATCH * BATCHES_COMPARED))
    return [tokenizer.encode(example.text, example.entity) for example in chosen]
