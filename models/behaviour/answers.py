"""A bundle's answers to many texts, through the tokenizer, the graph and the calibration that serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.prediction.calibration import calibrate_logits, find_scaling
from models.runtime.auto import open_runtime
from models.runtime.offline import infer_all
from models.runtime.protocol import Device
from models.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextCase:
    """A text and the entity that is asked about, if any."""

    text: str
    entity: str | None


class Answers:
    """Probabilities of a bundle for many texts, as it serves."""

    def __init__(self, bundle: Bundle, device: Device = "cpu") -> None:
        self._tokenizer, self._runtime = Tokenizer.from_bundle(bundle), open_runtime(bundle, 0, device)
        self._calibration, self.labels = bundle.calibration, bundle.task.labels

    def scores(self, cases: Sequence[TextCase]) -> NDArray[np.float64]:
        """Return the calibrated probabilities, (texts, labels)."""
        if not cases:
            return np.empty((0, len(self.labels)))
        encodings = [self._tokenizer.encode(case.text, case.entity) for case in cases]
        logits = infer_all(self._runtime, encodings, self._tokenizer.pad_id)
        scalings = [find_scaling(self._calibration, row.language, row.has_entity) for row in encodings]
        return calibrate_logits(logits, scalings)

    def answered(self, cases: Sequence[TextCase]) -> list[str]:
        """Return the label of each text."""
        return [self.labels[index] for index in self.scores(cases).argmax(axis=1)]

    def polarities(self, cases: Sequence[TextCase]) -> NDArray[np.float64]:
        """Return P(positive) - P(negative) of each text."""
        scores = self.scores(cases)
        return np.asarray(scores[:, self.labels.index("positive")] - scores[:, self.labels.index("negative")])
