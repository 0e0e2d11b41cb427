"""Safetensors files with a JSON description in their metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from models.files import replace_atomically

MAX_BYTES = 64 * 2**20


class ArtifactError(ValueError):
    """A head, ranker or reply set that must not be used. The message is a single line."""


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Return the description and the arrays of a file of this kind; raises ArtifactError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ArtifactError(f"{path.name}: it is larger than the limit of {MAX_BYTES // 2**20} MiB")
        with safe_open(str(path), "numpy") as file:
            description = json.loads((file.metadata() or {}).get("heed", "null"))
            tensors = {name: np.asarray(file.get_tensor(name), np.float32) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise (
            error if isinstance(error, ArtifactError) else ArtifactError(f"{path.name}: it cannot be read ({error})")
        ) from None
    if not isinstance(description, dict) or description.get("format") != kind:
        raise ArtifactError(f"{path.name}: it is not a file of the kind {kind}")
    return description, tensors


def write_tensors(path: Path, description: Mapping[str, Any], tensors: dict[str, NDArray[np.float32]]) -> None:
    """Write the description and the arrays to `path`, atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={"heed": json.dumps(description, ensure_ascii=False)}))
