"""The base encoder that a training starts from: which files it must have."""

from __future__ import annotations

from pathlib import Path

from models.bundle import MANIFEST, TOKENIZER
from models.networks.encoder import base_file

BASE_CONFIG, BASE_WEIGHTS, BASE_TOKENIZER_CONFIG = "config.json", "model.safetensors", "tokenizer_config.json"
BASE_FILES = (BASE_CONFIG, BASE_WEIGHTS, TOKENIZER)
"""The files that a base encoder must have, in the layout of Hugging Face transformers."""


class BaseEncoderError(ValueError):
    """A base encoder that cannot be read or written. The message is one line."""


def check_base_encoder(base: str) -> None:
    """Raise BaseEncoderError unless `base` is a folder with the files of an encoder, or a name on the hub."""
    folder = Path(base)
    if (folder / MANIFEST).exists():
        raise BaseEncoderError(f"{base} is a bundle; make a base encoder of it: heed base {base} --out BASE")
    if folder.is_dir():
        missing = [name for name in BASE_FILES if not (folder / name).is_file()]
        if missing:
            raise BaseEncoderError(f"{base} is no base encoder: it lacks {', '.join(missing)}")
        return
    if folder.exists() or folder.is_absolute() or base.startswith((".", "~")) or base.count("/") > 1:
        raise BaseEncoderError(f"there is no base encoder {base}: name a folder, or make one with heed base")
    try:
        for name in BASE_FILES:
            base_file(base, name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BaseEncoderError(f"the base encoder {base} is no folder and not on the hub: {reason}") from error
