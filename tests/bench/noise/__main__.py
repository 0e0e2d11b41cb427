"""The gain of label smoothing and soft bootstrapping over plain cross-entropy on the noisy set finfe_zh.

Fine-tunes the base on that set alone, for some seeds, with the shipped configuration except these two settings. Prints
the validation macro-F1 of each run and the means. Run with `make bench-noise BASE=... DATA=...`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from models.bundle import TOKENIZER
from models.evaluation.classification import predict_validation, report_dataset
from models.export.parity import uncalibrated
from models.networks.torch_runtime import TorchRuntime
from models.tasks import TASKS
from models.text.tokenizer import Tokenizer
from models.training.classification import (
    CONFIGS,
    load_run,
    load_weights,
    read_config,
    train_classifier,
)
from models.training.classification_batches import ClassificationConfig

SET = "finfe_zh"
ARMS = {"plain": (0.0, 0.0), "smoothing": (0.1, 0.0), "bootstrapping": (0.0, 0.2), "both": (0.1, 0.2)}
"""Label smoothing, and the weight of the model's own prediction."""


def main(
    base: Annotated[str, typer.Option(help="Encoder to start from.")],
    data: Annotated[Path, typer.Option(help="Folder with a folder for each data set.", exists=True)],
    seeds: Annotated[int, typer.Option(help="Runs of each arm.")] = 2,
    epochs: Annotated[float, typer.Option(help="Epochs of each run.")] = 2.0,
) -> None:
    shipped = replace(read_config(CONFIGS / "sentiment.toml"), noised=0.0, twins=0.0, quantized=False, compiled=False)
    shipped_dataset = next(dataset for dataset in shipped.datasets if dataset.name == SET)
    scores: dict[str, list[float]] = {}
    for seed in range(seeds):
        for arm, (smoothing, bootstrap) in ARMS.items():
            dataset = replace(shipped_dataset, smoothing=smoothing, bootstrap=bootstrap, share=1.0)
            config = replace(shipped, seed=seed, epochs=epochs, warmup_steps=30, datasets=(dataset,))
            scores.setdefault(arm, []).append(macro_f1(config, base, data))
            print(f"seed {seed} {arm}: macro-F1 {scores[arm][-1]:.4f}", flush=True)
    for arm, values in scores.items():
        print(f"{arm}: mean {mean(values):.4f}, from {min(values):.4f} to {max(values):.4f}")


def macro_f1(config: ClassificationConfig, base: str, data: Path) -> float:
    task = TASKS[config.task]
    with TemporaryDirectory() as folder:
        out = train_classifier(config, base, data, Path(folder))
        runtime = TorchRuntime(load_weights(out, load_run(out), task))
        tokenizer = Tokenizer(out / TOKENIZER, task.max_tokens, config.reading)
        (rows,) = predict_validation(runtime, tokenizer, task, data, config.datasets)
    return report_dataset(rows, uncalibrated(rows, len(task.labels)), task).macro_f1


if __name__ == "__main__":
    typer.run(main)
