"""Export of a base encoder: the weights of a bundle as a folder that a training can start from."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copyfile

from safetensors.torch import save_file

from models.bundle import TOKENIZER, Bundle
from models.export.staging import staging
from models.networks.base_encoder import BASE_CONFIG, BASE_TOKENIZER_CONFIG, BASE_WEIGHTS, BaseEncoderError
from models.networks.encoder import MARKS_ENTITIES
from models.networks.graph_network import NetworkShape, load_graph_encoder
from models.text.tokenizer import Tokenizer


def export_base(bundle: Bundle, out: Path) -> NetworkShape:
    """Write the encoder of a bundle to the new folder `out`, in the layout of Hugging Face transformers.

    The weights are dequantised to fp32. Raises BaseEncoderError when `out` holds files or the graph cannot be read.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BaseEncoderError(f"{out} exists already: name a new folder with --out")
    try:
        encoder, shape = load_graph_encoder(bundle.graph, Tokenizer.from_bundle(bundle).pad_id)
    except ValueError as error:
        raise BaseEncoderError(f"bundle {bundle.path.name}: its weights cannot be read back ({error})") from error
    with staging(out) as building:
        encoder.config.architectures = [type(encoder).__name__]
        setattr(encoder.config, MARKS_ENTITIES, True)
        encoder.config.to_json_file(building / BASE_CONFIG)
        save_file(encoder.state_dict(), building / BASE_WEIGHTS, {"format": "pt"})
        copyfile(bundle.tokenizer, building / TOKENIZER)
        settings = tokenizer_settings(encoder.config.max_position_embeddings)
        (building / BASE_TOKENIZER_CONFIG).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        if out.exists():
            out.rmdir()
        building.rename(out)
    return shape


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
