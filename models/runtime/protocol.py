"""The interface of runtimes: a padded batch in, a row for each text out.

`models.runtime.onnx` and `cuda` serve. `models.export.torch_runtime` is the reference for the exported graph.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from models.text.encoding import Batch


class Runtime(Protocol):
    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Return logits (batch, labels) or vectors (batch, width). Blocks, and is not thread-safe."""
        ...


Device = Literal["cpu", "cuda"]
