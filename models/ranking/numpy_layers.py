"""What the layers of a history model do beside products, in few passes over whole arrays. Knows numpy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ERF = (0.3275911, (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429))
"""Abramowitz and Stegun 1964, 7.1.26: erf to 1.5e-7."""

Array = NDArray[np.float32]


def softmax_terms(values: Array) -> tuple[Array, Array]:
    """Of a softmax over the last axis but one the exponentials, made in place of `values`, and their sums.

    Over that axis numpy reduces whole rows at a time, and what is made of a softmax is often smaller to divide.
    """
    values -= values.max(axis=-2, keepdims=True)
    found = np.exp(values, out=values)
    return found, found.sum(axis=-2)


def normalize_centered_rows(states: Array) -> Array:
    """Of a layer norm, what comes before its weights, where the mean of each row is 0 already; (rows, width)."""
    variance = np.einsum("ij,ij->i", states, states)[:, None] / np.float32(states.shape[-1])
    found: Array = states / np.sqrt(variance + np.float32(1e-5))
    return found


def gelu(values: Array) -> Array:
    """By erf in passes over whole arrays: scipy's takes three times as long, number by number."""
    inward, terms = _ERF
    size = np.abs(values)
    near = size * np.float32(inward / np.sqrt(2))
    near += 1
    np.reciprocal(near, out=near)
    part = near * np.float32(terms[-1] / 2)
    for term in terms[-2::-1]:
        part += np.float32(term / 2)
        part *= near
    fallen = np.square(values)
    fallen *= np.float32(-0.5)
    part *= np.exp(fallen, out=fallen)
    part *= size
    found: Array = np.maximum(values, 0)
    found -= part
    return found
