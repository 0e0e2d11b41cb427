"""The base encoder that a training starts from: the files that it must have, and writing them."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copyfile

from safetensors.torch import save_file
from transformers import PreTrainedModel

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


def write_base_encoder(folder: Path, encoder: PreTrainedModel, tokenizer: Path) -> None:
    """Write an encoder and its `tokenizer.json` to a folder, in the layout of Hugging Face transformers."""
    encoder.config.architectures = [type(encoder).__name__]
    encoder.config.to_json_file(folder / BASE_CONFIG)
    weights = {name: tensor.cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    save_file(weights, folder / BASE_WEIGHTS, {"format": "pt"})
    copyfile(tokenizer, folder / TOKENIZER)
    settings = tokenizer_settings(encoder.config.max_position_embeddings)
    (folder / BASE_TOKENIZER_CONFIG).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def tokenizer_settings(max_tokens: int) -> dict[str, str | int]:
    """Return what transformers needs to know of the tokenizer beside its `tokenizer.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
