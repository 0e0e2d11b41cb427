"""The precisions of a graph with the same trained weights: speed, macro-F1 and independence of the batch.

Writes each graph from a training folder, runs them in turn on one thread, and prints a table. Its columns are texts per
second alone and in batches of near lengths (medians of rounds), macro-F1, the share of labels that agree with fp32, and
the largest change of a probability between a text alone and in a batch of 32.
Run with `make bench-graphs RUN=... DATA=...`.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from models.bundle import TOKENIZER, find_external_locations
from models.data.classification import read_dataset
from models.evaluation.classification import encode_examples, predict_validation, report_dataset
from models.export.parity import largest_batch_change, uncalibrated
from models.graph.builder import build_graph, save_graph
from models.graph.names import LOG_STEP
from models.graph.writer import Precision
from models.networks.encoder import graph_weights
from models.prediction.calibration_fit import ValidationPredictions
from models.runtime.onnx import OnnxRuntime
from models.tasks import TASKS, Task
from models.text.encoding import Encoding, collate
from models.text.tokenizer import Tokenizer
from models.training.classification import TrainingRun, load_run, load_weights

TIMED_TEXTS, TIMED_TOKENS, BATCH_TOKENS = 96, (8, 256), 1024
SHORT_TOKENS = 40
CALIBRATION_TEXTS, INVARIANCE_TEXTS = 128, 320
COMPUTE_INT8 = 4
"""The accuracy level of MatMulNBits that rounds its input to 8 bits."""


class CalibrationTexts(CalibrationDataReader):  # type: ignore[misc]
    """The calibration texts for ONNX Runtime's static quantisation, in batches of one."""

    def __init__(self, tokens: Sequence[Encoding], pad: int) -> None:
        self._batches = iter([collate([item], pad) for item in tokens])

    def get_next(self) -> dict[str, NDArray[np.int64]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"ids": batch.ids, "mask": batch.mask, "types": batch.token_types}


def main(
    run: Annotated[Path, typer.Option(help="A folder that `heed train` or `heed distill` wrote.", exists=True)],
    data: Annotated[Path, typer.Option(help="Folder with a folder for each data set.", exists=True)],
    rows: Annotated[int, typer.Option(help="Validation rows of each set.")] = 400,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds of timing.")] = 3,
) -> None:
    logging.getLogger("onnxruntime.quantization").setLevel(logging.WARNING)  # otherwise it logs a line per node
    trained = load_run(run)
    task = TASKS[trained.config.task]
    tokenizer = Tokenizer(run / TOKENIZER, task.max_tokens, trained.config.reading)
    sources = [dataset for dataset in trained.config.datasets if dataset.has_validation]
    texts = encode_examples(tokenizer, [row for source in sources for row in read_dataset(data, source, "train")])
    random.Random(0).shuffle(texts)
    fitting = [text for text in texts if TIMED_TOKENS[0] <= text.length <= TIMED_TOKENS[1]]
    short = [text for text in fitting if text.length <= SHORT_TOKENS][:TIMED_TEXTS]
    timed = {
        "short, alone": [[text] for text in short],
        "short, batched": batch_by_length(short),
        "mixed, batched": batch_by_length(fitting[:TIMED_TEXTS]),
    }
    with TemporaryDirectory() as folder:
        paths = write_graphs(
            run, trained, task, Path(folder), CalibrationTexts(texts[:CALIBRATION_TEXTS], tokenizer.pad_id)
        )
        graphs = {name: OnnxRuntime(path) for name, path in paths.items()}
        seconds: dict[tuple[str, str], list[float]] = {}
        for _ in range(rounds):
            for name, graph in graphs.items():
                for kind, batches in timed.items():
                    seconds.setdefault((name, kind), []).append(time_batches(graph, batches, tokenizer.pad_id))
        print(f"| graph | MB | {' | '.join(f'{kind}, texts/s' for kind in timed)} | macro-F1 | agree | batch change |")
        print("|---|--:|" + "--:|" * (len(timed) + 3))
        reference: list[ValidationPredictions] = []
        for name, graph in graphs.items():
            predictions = predict_validation(graph, tokenizer, task, data, trained.config.datasets, rows)
            reference = reference or predictions
            speeds = [f"{sum(map(len, timed[kind])) / median(seconds[name, kind]):.0f}" for kind in timed]
            f1 = np.mean(
                [
                    report_dataset(validation, uncalibrated(validation, len(task.labels)), task).macro_f1
                    for validation in predictions
                ]
            )
            agreement = np.concatenate(
                [
                    predicted_labels(validation) == predicted_labels(fp32)
                    for validation, fp32 in zip(predictions, reference, strict=True)
                ]
            ).mean()
            change = largest_batch_change(graph, texts[:INVARIANCE_TEXTS], tokenizer.pad_id)
            size = megabytes(paths[name])
            print(
                f"| {name} | {size:.0f} | {' | '.join(speeds)} | {f1:.4f} | {agreement:.2%} | {change:.1e} |",
                flush=True,
            )


def write_graphs(run: Path, trained: TrainingRun, task: Task, folder: Path, texts: CalibrationTexts) -> dict[str, Path]:
    """Write the graphs and return their paths by name. The first is fp32."""
    network = load_weights(run, trained, task)
    heads, epsilon = network.encoder.config.num_attention_heads, network.encoder.config.layer_norm_eps
    learned = graph_weights(network)
    stepless = {name: value for name, value in learned.items() if not name.endswith(LOG_STEP)}
    kinds: dict[str, tuple[dict[str, NDArray[np.float32]], Precision]] = {
        "fp32": (learned, "fp32"),
        "16-bit weights": (learned, "mixed"),
        "int8, a scale per token": (stepless, "int8"),
    }
    if len(stepless) < len(learned):
        kinds["int8, learned steps"] = (learned, "int8")
    paths = {}
    for index, (name, (weights, storage)) in enumerate(kinds.items()):
        paths[name] = folder / str(index) / f"{storage}.onnx"
        paths[name].parent.mkdir()
        save_graph(build_graph(weights, heads, epsilon, storage), paths[name])
    plain_graph = paths["fp32"]
    options: dict[str, Any] = {"per_channel": True, "reduce_range": True}
    quantizers: dict[str, Callable[[Path], Any]] = {
        "ONNX Runtime's dynamic int8": lambda out: quantize_dynamic(
            plain_graph, out, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8, **options
        ),
        "static int8 (QDQ)": lambda out: quantize_static(
            plain_graph,
            out,
            texts,
            QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            weight_type=QuantType.QInt8,
            **options,
        ),
        "MatMulNBits 8, fp32 arithmetic": lambda out: quantize_blocks(plain_graph, out, 8, None),
        "MatMulNBits 8, int8 arithmetic": lambda out: quantize_blocks(plain_graph, out, 8, COMPUTE_INT8),
        "MatMulNBits 4, int8 arithmetic": lambda out: quantize_blocks(plain_graph, out, 4, COMPUTE_INT8),
    }
    for index, (name, quantize) in enumerate(quantizers.items()):
        paths[name] = folder / f"{index}.onnx"
        quantize(paths[name])
    return paths


def quantize_blocks(source: Path, out: Path, bits: int, level: int | None) -> None:
    quantizer = MatMulNBitsQuantizer(
        onnx.load(str(source)), bits=bits, block_size=32, is_symmetric=True, accuracy_level=level
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(out))


def batch_by_length(texts: Sequence[Encoding]) -> list[list[Encoding]]:
    """Return batches of near lengths within the token budget."""
    batches: list[list[Encoding]] = [[]]
    for text in sorted(texts, key=lambda text: text.length):
        if batches[-1] and text.length * (len(batches[-1]) + 1) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(text)
    return batches


def time_batches(graph: OnnxRuntime, batches: Sequence[Sequence[Encoding]], pad: int) -> float:
    ready = [collate(batch, pad) for batch in batches]
    started_s = time.perf_counter()
    for batch in ready:
        graph.run(batch)
    return time.perf_counter() - started_s


def megabytes(graph: Path) -> float:
    """Return the size of a graph, including its external embeddings."""
    external = (graph.with_name(name) for name in find_external_locations(graph.read_bytes()) if name)
    return sum(file.stat().st_size for file in (graph, *external)) / 1e6


def predicted_labels(answers: ValidationPredictions) -> NDArray[np.int64]:
    best: NDArray[np.int64] = answers.logits.argmax(axis=1)
    return best


if __name__ == "__main__":
    typer.run(main)
