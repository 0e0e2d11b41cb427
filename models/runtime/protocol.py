"""What every runtime offers: one padded batch in, a row for each text out.

`models.runtime.onnx` and `cuda` serve, `models.export.torch_runtime` is what the exported graph is held to.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from models.text.encoding import Batch


class Runtime(Protocol):
    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Logits (batch, labels), or vectors (batch, width). Blocks; not to be called from two threads at once."""
        ...


Device = Literal["cpu", "cuda"]
