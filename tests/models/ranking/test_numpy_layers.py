from __future__ import annotations

import numpy as np
from scipy.special import erf

from models.ranking.numpy_layers import gelu, softmax_terms


def test_gelu_equals_the_exact_form() -> None:
    values = np.concatenate([np.linspace(-9, 9, 4_001), [0.0, -1e4, 1e4]]).astype(np.float32)
    exact = values.astype(float) * (1 + erf(values.astype(float) / np.sqrt(2))) / 2
    np.testing.assert_allclose(gelu(values), exact, rtol=2e-7, atol=1e-6)


def test_softmax_of_large_values_is_finite() -> None:
    values = np.asarray([[1000.0, -1000.0], [1001.0, -1000.0]], np.float32)
    exponentials, total = softmax_terms(values)
    np.testing.assert_allclose(exponentials / total, [[1 / (1 + np.e), 0.5], [np.e / (1 + np.e), 0.5]], rtol=1e-6)
