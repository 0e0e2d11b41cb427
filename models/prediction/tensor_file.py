"""Safetensors files with a JSON description in their metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from models.files import FileTooLargeError, read_regular, replace_atomically

MAX_BYTES = 64 * 2**20

UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
"""The exceptions that a description or an array of the wrong kind raises."""


class ArtifactError(ValueError):
    """A head, ranker or reply set that must not be used. The message is a single line."""


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Return the description and the arrays of a file of this kind; raises ArtifactError.

    The file is read and not mapped, because another process may cut a mapped file short, which kills the reader.
    """
    try:
        content = read_regular(path, MAX_BYTES)
        with np.errstate(over="ignore"):  # a number beyond fp32 becomes infinite, and is refused as such
            tensors = {name: np.asarray(values, np.float32) for name, values in load(content).items()}
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        description = json.loads(header.get("__metadata__", {}).get("heed", "null"))
    except FileTooLargeError:
        raise ArtifactError(f"{path.name}: it is larger than the limit of {MAX_BYTES // 2**20} MiB") from None
    except OSError as error:
        raise ArtifactError(f"{path.name}: it cannot be read ({error.strerror})") from None
    except (SafetensorError, *UNREADABLE) as error:
        raise ArtifactError(f"{path.name}: it cannot be read ({error})") from None
    if not isinstance(description, dict) or description.get("format") != kind:
        raise ArtifactError(f"{path.name}: it is not a file of the kind {kind}")
    return description, tensors


def write_tensors(path: Path, description: Mapping[str, Any], tensors: dict[str, NDArray[np.float32]]) -> None:
    """Write the description and the arrays to `path`, atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={"heed": json.dumps(description, ensure_ascii=False)}))
