"""The labels that a contender must give before it is measured: computed here, text by text, from the same bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from models.bundle import Bundle
from models.prediction.calibration import calibrate_logits, find_scaling
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import collate
from models.text.tokenizer import Tokenizer
from tests.bench.serving.contenders import Answers


def expected(bundle: Bundle, texts: Sequence[str]) -> Mapping[Answers, Sequence[str]]:
    tokenizer, runtime = Tokenizer(bundle.tokenizer, bundle.max_tokens), OnnxRuntime(bundle.graph)
    found: dict[Answers, list[str]] = {Answers.PLAIN: [], Answers.CALIBRATED: []}
    for text in texts:
        tokens = tokenizer.encode(text)
        logits = runtime.run(collate([tokens], tokenizer.pad_id))
        found[Answers.PLAIN].append(bundle.task.labels[int(logits.argmax())])
        scores = calibrate_logits(logits, [find_scaling(bundle.calibration, tokens.language, tokens.has_entity)])
        found[Answers.CALIBRATED].append(bundle.task.labels[int(scores.argmax())])
    return found
