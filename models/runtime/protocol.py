"""The interface of runtimes: a padded batch in, a row for each text out.

`models.runtime.onnx` and `cuda` serve. `models.networks.torch_runtime` is the reference for the exported graph.
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


class VectorRuntime(Runtime, Protocol):
    """A runtime that also gives the vectors which a classifier's logits are computed from, if its graph has them."""

    @property
    def has_vectors(self) -> bool:
        """Say whether the graph has the output `vectors`. Classifiers from older exports do not."""
        ...

    def run_with_vectors(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the rows of `run` and the vectors (batch, width) of the same run.

        An encoder's rows are its vectors.

        Raises:
            NoVectorsError: The graph has no vectors.
        """
        ...


class NoVectorsError(Exception):
    """The graph of a classifier has no output `vectors`, because it is from an older export."""


Device = Literal["cpu", "cuda"]
