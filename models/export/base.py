"""Export of a base encoder: the weights of a bundle as a folder that a training can start from."""

from __future__ import annotations

from pathlib import Path

from models.bundle import Bundle
from models.export.staging import staging
from models.networks.base_encoder import BaseEncoderError, write_base_encoder
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
        setattr(encoder.config, MARKS_ENTITIES, True)
        write_base_encoder(building, encoder, bundle.tokenizer)
        if out.exists():
            out.rmdir()
        building.rename(out)
    return shape
