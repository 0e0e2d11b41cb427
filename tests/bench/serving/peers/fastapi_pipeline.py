"""A usual home-made service: FastAPI and the transformers pipeline on torch. One process, torch's default threads.

The bundle has no torch weights, so the network has the bundle's architecture and random weights. Speed does not depend
on the values, and its labels mean nothing. It uses fp32, because torch has no 8-bit counterpart of the graph.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import onnx
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, TextClassificationPipeline

_HEAD_WIDTH = 32  # of the shipped encoder; the graph does not name it


class Body(BaseModel):
    inputs: str | list[str]


def config(bundle: Path, labels: list[str], words: int) -> BertConfig:
    """Return the configuration with sizes from the names and shapes of the graph's initialisers."""
    graph = onnx.load(bundle / "model.int8.onnx", load_external_data=False).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    layers = {match[1] for name in shapes if (match := re.search(r"\.layer\.(\d+)\.", name))}
    width = shapes["encoder.embeddings.LayerNorm.bias"][0]
    return BertConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=width // _HEAD_WIDTH,
        intermediate_size=shapes["encoder.encoder.layer.0.intermediate.dense.bias"][0],
        max_position_embeddings=shapes["encoder.embeddings.position_embeddings.weight"][0],
        id2label=dict(enumerate(labels)),
    )


def pipeline() -> TextClassificationPipeline:
    bundle = Path(os.environ["BUNDLE"])
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(bundle / "tokenizer.json"), pad_token="<pad>", model_max_length=manifest["max_tokens"]
    )
    model = BertForSequenceClassification(config(bundle, manifest["labels"], len(tokenizer))).eval()
    return TextClassificationPipeline(model=model, tokenizer=tokenizer)


app = FastAPI()
classify = pipeline()


@app.post("/predict")
def predict(body: Body) -> list[Any]:
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    answers = classify(texts, top_k=None, truncation=True, batch_size=len(texts))
    return [
        {"label": scores[0]["label"], "scores": {score["label"]: score["score"] for score in scores}}
        for scores in answers
    ]
