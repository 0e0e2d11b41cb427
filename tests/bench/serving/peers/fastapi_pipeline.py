"""FastAPI with the transformers pipeline on torch, the usual home-made service: one process, torch's default threads.

The bundle carries no torch weights, so the network has the bundle's architecture and random weights: speed does not
depend on the values, and its labels mean nothing. fp32, as torch has no 8-bit counterpart of the graph.
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


class Question(BaseModel):
    inputs: str | list[str]


def config(bundle: Path, labels: list[str], words: int) -> BertConfig:
    """The sizes, read from the names and shapes of the graph's initialisers."""
    graph = onnx.load(bundle / "model.int8.onnx", load_external_data=False).graph
    shapes = {one.name: list(one.dims) for one in graph.initializer}
    layers = {found[1] for name in shapes if (found := re.search(r"\.layer\.(\d+)\.", name))}
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
def predict(question: Question) -> list[Any]:
    texts = [question.inputs] if isinstance(question.inputs, str) else question.inputs
    answers = classify(texts, top_k=None, truncation=True, batch_size=len(texts))
    return [{"label": scores[0]["label"], "scores": {s["label"]: s["score"] for s in scores}} for scores in answers]
