"""Triton through pytriton, with its dynamic batching: one instance per core, one ONNX Runtime thread each.

Triton speaks the Open Inference Protocol. A request is a tensor of strings, an answer a tensor of labels and a tensor
of scores. Needs numpy below 2, and thus a separate environment.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx_classifier import Classifier
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

MAX_TEXTS, QUEUE_DELAY_US = 32, 5_000


def instance() -> Callable[..., dict[str, np.ndarray]]:
    classify = Classifier()

    @batch
    def infer(texts: np.ndarray) -> dict[str, np.ndarray]:
        answers = classify([text.decode() for text in texts[:, 0]])
        labels = np.array([[answer["label"].encode()] for answer in answers], object)
        return {
            "label": labels,
            "scores": np.array([list(answer["scores"].values()) for answer in answers], np.float32),
        }

    return infer


def main() -> None:
    inputs = [Tensor(name="texts", dtype=bytes, shape=(1,))]
    outputs = [Tensor(name="label", dtype=bytes, shape=(1,)), Tensor(name="scores", dtype=np.float32, shape=(-1,))]
    batcher = DynamicBatcher(max_queue_delay_microseconds=QUEUE_DELAY_US)
    config = TritonConfig(
        http_address="127.0.0.1", http_port=int(os.environ["PORT"]), allow_grpc=False, allow_metrics=False
    )
    with tempfile.TemporaryDirectory() as folder, Triton(config=config, workspace=Path(folder) / "triton") as triton:
        instances = [instance() for _ in range(int(os.environ["CORES"]))]
        sizes = ModelConfig(max_batch_size=MAX_TEXTS, batcher=batcher)
        triton.bind("sentiment", instances, inputs, outputs, config=sizes)
        triton.serve()


if __name__ == "__main__":
    main()
