"""Tiny encoders with random weights, and settings that train one in seconds."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from transformers import BertConfig, BertModel

from models.training.trainer import TrainingConfig

AnyConfig = TypeVar("AnyConfig", bound=TrainingConfig)

SETTINGS: dict[str, Any] = {
    "batch_tokens": 600,
    "batch_examples": 16,
    "max_tokens": 64,
    "encoder_rate": 3e-3,
    "head_rate": 1e-2,
    "layer_decay": 1.0,
    "weight_decay": 0.01,
    "warmup_steps": 10,
    "anneal": 0.5,
    "freeze_embeddings": False,
    "validate_every": 1000,
    "validation_rows": 20,
    "checkpoint_every": 1000,
}


def tiny_config(kind: type[AnyConfig], **settings: Any) -> AnyConfig:
    """Return a configuration of this kind: SETTINGS, and these settings over them."""
    return kind(**(SETTINGS | settings))


def tiny_encoder(seed: int, vocabulary: int, *, width: int = 32, layers: int = 3, spread: float = 0.3) -> BertModel:
    """Seed torch, and return an encoder with four heads and random weights."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * width,
        initializer_range=spread,
    )
    return BertModel(config, add_pooling_layer=False)
