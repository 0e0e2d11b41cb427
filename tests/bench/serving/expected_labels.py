"""The labels that a contender must return before it is measured, computed text by text from the same bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from models.bundle import Bundle
from models.prediction.calibration import calibrate_logits, find_scaling
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import collate
from models.text.tokenizer import Tokenizer
from tests.bench.serving.contenders import Answers


def compute_expected_labels(bundle: Bundle, texts: Sequence[str]) -> Mapping[Answers, Sequence[str]]:
    tokenizer, runtime = Tokenizer.from_bundle(bundle), OnnxRuntime(bundle.graph)
    labels: dict[Answers, list[str]] = {Answers.PLAIN: [], Answers.CALIBRATED: []}
    for text in texts:
        encoding = tokenizer.encode(text)
        logits = runtime.run(collate([encoding], tokenizer.pad_id))
        labels[Answers.PLAIN].append(bundle.task.labels[int(logits.argmax())])
        scores = calibrate_logits(logits, [find_scaling(bundle.calibration, encoding.language, encoding.has_entity)])
        labels[Answers.CALIBRATED].append(bundle.task.labels[int(scores.argmax())])
    return labels
