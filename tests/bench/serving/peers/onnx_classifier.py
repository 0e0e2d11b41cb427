"""The classifier of every peer: texts to labels and scores, with the bundle's tokenizer and graph.

It is like the example code of a server: the Rust tokenizer, padding to the longest text, ONNX Runtime. It imports
nothing from Heed and has no calibration. `BUNDLE` names the folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import tokenizers

# For example {"label": "positive", "scores": {"negative": 0.1, "neutral": 0.2, "positive": 0.7}}
Answer = dict[str, Any]


class Classifier:
    def __init__(self, threads: int = 1) -> None:
        bundle = Path(os.environ["BUNDLE"])
        manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
        self._labels = manifest["labels"]
        self._tokenizer = tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))
        self._tokenizer.enable_truncation(manifest["max_tokens"])
        self._tokenizer.enable_padding(pad_id=self._tokenizer.token_to_id("<pad>"), pad_token="<pad>")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        graph = str(bundle / "model.int8.onnx")
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __call__(self, texts: Sequence[str]) -> list[Answer]:
        encodings = self._tokenizer.encode_batch(list(texts))
        feeds = {
            "ids": np.array([encoding.ids for encoding in encodings], np.int64),
            "mask": np.array([encoding.attention_mask for encoding in encodings], np.int64),
            "types": np.zeros((len(encodings), len(encodings[0].ids)), np.int64),
        }
        (logits,) = self._session.run(["logits"], feeds)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return [self._answer(row) for row in (weights / weights.sum(axis=1, keepdims=True)).tolist()]

    def _answer(self, scores: Sequence[float]) -> Answer:
        named = dict(zip(self._labels, scores, strict=True))
        return {"label": max(named, key=named.__getitem__), "scores": named}
