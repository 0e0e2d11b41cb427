"""L2 and centred normalisation of vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def normalize_centered(vectors: NDArray[np.floating], center: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `vectors` (..., width) minus `center`, scaled to length 1."""
    centered = vectors.astype(np.float32) - center
    return np.asarray(centered / np.maximum(np.linalg.norm(centered, axis=-1, keepdims=True), 1e-9), np.float32)


def l2_normalize(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return `vectors` (..., width) scaled to length 1."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9), np.float32)
