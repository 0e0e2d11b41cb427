"""The reference runtime: the trained network itself. Every exported graph is compared with it in fp32 on the CPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from models.networks.encoder import Network
from models.text.encoding import Batch


class TorchRuntime:
    """A network as a runtime. It moves the network to the device and the type of its arithmetic, in place."""

    def __init__(self, model: Network, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self._model = model.eval().to(device, dtype)
        self._device = device

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Return a row per text: logits (batch, labels), or vectors (batch, width)."""
        arrays = (batch.ids, batch.mask, batch.token_types)
        with torch.inference_mode():
            rows = self._model(*(torch.from_numpy(array).to(self._device) for array in arrays))
        result: NDArray[np.float32] = rows.float().cpu().numpy()
        return result
