"""The reference runtime: the trained network itself, in fp32, which every exported graph is compared with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from models.network import Classifier
from models.tokens import Batch


class TorchRuntime:
    def __init__(self, model: Classifier) -> None:
        self._model = model.eval()

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Logits of shape (batch, labels)."""
        with torch.inference_mode():
            logits = self._model(*(torch.from_numpy(array) for array in (batch.ids, batch.mask, batch.types)))
        result: NDArray[np.float32] = logits.float().numpy()
        return result
