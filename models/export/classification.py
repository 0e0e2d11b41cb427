"""Export of a classifier: a training folder becomes a bundle, unless the graph's answers differ too much from torch's.

The export builds each graph, compares it with the trained network on all validation data, calibrates, evaluates and
writes the card. Serving the bundle needs no torch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from models.bundle import GRAPH, TOKENIZER, Bundle, Source
from models.data.classification import Dataset
from models.data.sources import read_validation
from models.evaluation.classification import (
    CONFUSION,
    calibrate_genres,
    draw_confusion,
    metrics_of,
    predict_validation,
    report_dataset,
)
from models.export.card_classification import CardFigures, render_classifier_card
from models.export.parity import (
    BATCH,
    FP16_BOUNDS,
    INT8_BOUNDS,
    Parity,
    check_parity,
    largest_batch_change,
    measure_parity,
)
from models.export.staging import make_manifest, open_runtimes, publish, staging, write_graph
from models.graph.writer import Precision
from models.networks.encoder import require_token_types
from models.networks.torch_runtime import TorchRuntime
from models.prediction.calibration_fit import (
    ValidationPredictions,
    cross_fitted_errors,
    fit_calibration,
    load_predictions,
)
from models.runtime.cuda import GPU_GRAPH_LABEL
from models.tasks import TASKS
from models.text.encoding import Encoding
from models.text.tokenizer import Tokenizer
from models.training.classification import LEFT_OUT, load_run, load_weights

BOUNDS = {GRAPH: INT8_BOUNDS, GPU_GRAPH_LABEL: FP16_BOUNDS}
COMPARED_BATCHES = 20


def export_classifier(
    run: Path,
    data: Path,
    out: Path,
    version: str,
    storage: Precision,
    teacher: Bundle | None,
    log: Callable[[str], None],
    left_out: Sequence[Path] = (),
) -> Bundle:
    """Write the bundle `out` from the training folder `run`.

    `storage` is that of the graph's weights. The card of a student compares it with its `teacher`. `left_out` are
    folders of runs of the same recipe without some of its sources. Their answers to these sources tell how sure the
    model may be of texts unlike its own, so the calibration is fitted on them too. Raises ParityError if the graph
    drifts, and ValueError if the network can only teach. Both leave `out` alone.
    """
    trained = load_run(run)
    task, datasets = TASKS[trained.config.task], trained.config.datasets
    tokenizer = Tokenizer(run / TOKENIZER, task.max_tokens, trained.config.reading)
    with staging(out, run) as building:
        network = load_weights(run, trained, task)
        require_token_types(network)
        truth = predict_validation(TorchRuntime(network), tokenizer, task, data, datasets)
        log("predicted the validation data with torch in fp32")
        sample = sample_encodings(tokenizer, data, datasets)
        write_graph(network, storage, building)
        answers: dict[str, list[ValidationPredictions]] = {}
        parities: dict[str, Parity] = {}
        for name, runtime in open_runtimes(building):
            answers[name] = predict_validation(runtime, tokenizer, task, data, datasets)
            parities[name] = measure_parity(
                truth, answers[name], largest_batch_change(runtime, sample, tokenizer.pad_id), task
            )
            check_parity(name, parities[name], BOUNDS[name])
            log(f"{name}: {parities[name]}")

        unseen = [rows for folder in left_out for rows in load_predictions(folder / LEFT_OUT)]
        calibration = fit_calibration([*answers[GRAPH], *unseen])
        measured = [report_dataset(rows, calibration, task) for rows in answers[GRAPH]]
        draw_confusion(measured, task, building / CONFUSION)
        languages = sorted({dataset.language for dataset in datasets})
        sources = [Source(source.name, source.language, source.licence) for source in (*datasets, *trained.texts)]
        manifest = make_manifest(out.name, version, task, trained.base, languages, sources)
        manifest = replace(
            manifest,
            calibration=calibration,
            metrics=metrics_of(out.name, measured),
            reading=trained.config.reading,
        )
        figures = CardFigures(
            measured,
            cross_fitted_errors(answers[GRAPH]),
            parities,
            calibrate_genres(answers[GRAPH], datasets, calibration),
            [report_dataset(rows, calibration, task) for rows in unseen],
        )
        text = render_classifier_card(manifest, figures, trained, teacher, storage)
        return publish(building, out, manifest, text)


def sample_encodings(tokenizer: Tokenizer, data: Path, datasets: Sequence[Dataset]) -> list[Encoding]:
    """Return shuffled validation texts of all sets, so that every batch mixes languages and lengths."""
    rng = random.Random(0)
    rows = [example for dataset in datasets for example in read_validation(data, dataset)]
    chosen = rng.sample(rows, min(len(rows), BATCH * COMPARED_BATCHES))
    return [tokenizer.encode(example.text, example.entity) for example in chosen]
