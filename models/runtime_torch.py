"""The reference runtime: the trained network itself. In fp32 on the CPU every exported graph is compared with it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from models.network import Classifier
from models.tokens import Batch


class TorchRuntime:
    """Moves the network to the device and the type of its arithmetic, in place."""

    def __init__(self, model: Classifier, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self._model = model.eval().to(device, dtype)
        self._device = device

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Logits of shape (batch, labels)."""
        arrays = (batch.ids, batch.mask, batch.types)
        with torch.inference_mode():
            logits = self._model(*(torch.from_numpy(array).to(self._device) for array in arrays))
        result: NDArray[np.float32] = logits.float().cpu().numpy()
        return result
