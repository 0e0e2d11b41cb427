"""A tiny real bundle for each task: two layers of width 32 with fixed random weights, and a character tokenizer.

It is made in a fraction of a second, without torch. Its answers mean nothing and never change.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from models.bundle import CARD, GRAPH, TOKENIZER, Manifest, Metric, Source, file_digest, save_bundle
from models.catalogue.items import Item
from models.graph.builder import build_graph, save_graph
from models.prediction import intent_head as heads
from models.prediction.calibration import LogitScaling
from models.prediction.intent_head import SUFFIX, IntentHead, save_head
from models.prediction.intent_head_fit import Examples, fit_intent_head
from models.prediction.reply_ranker import RANKER, ReplyRanker, save_ranker
from models.ranking.bundle_files import WEIGHTS as HISTORY
from models.ranking.bundle_files import save_items
from models.ranking.events import AGE_BUCKETS, EVENT_TYPES, POSITION_BUCKETS
from models.ranking.recommender import Recommender
from models.runtime.offline import TextEncoder
from models.runtime.onnx import OnnxRuntime
from models.tasks import INTENT, RECOMMEND, SENTIMENT, Task
from models.text.tokenizer import Tokenizer, Turn

Weights = dict[str, NDArray[np.float32]]

LABEL_SETS = {"letters": "abc", "digits": "1234"}
WIDTH, HEADS, LAYERS, INNER = 32, 4, 2, 64
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
PIECES = [
    *SPECIAL,
    "▁",
    *map(chr, range(33, 127)),
    *"股票上涨下跌公司利润增长减持好坏中国平安银行手机质量快递一二三四五六七八九十的是不了",
]

CATALOGUE = "letters"
CATALOGUE_ITEMS = tuple(
    Item(f"item-{start}{length}", start * length, {"price": float(length), "kind": start}, float(length % 5))
    for start in "abc上下"
    for length in range(1, 9)
)
ATTENTION_HEADS, ATTENTION_WIDTH = 2, 4
"""The candidate attention of the history model."""


@dataclass(frozen=True, slots=True)
class _LayerNames:
    """The names of a transformer layer's weights, below its prefix."""

    projections: tuple[str, str, str, str]  # query, key, value, output
    inner: tuple[str, str]  # in, out
    norms: tuple[str, str]


_BERT_LAYER = _LayerNames(
    ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    ("intermediate.dense", "output.dense"),
    ("attention.output.LayerNorm", "output.LayerNorm"),
)
_HISTORY_LAYER = _LayerNames(
    ("attention.query", "attention.key", "attention.value", "attention.output"),
    ("inner", "output"),
    ("attention_norm", "inner_norm"),
)


class _RandomWeights:
    """Draws weights from one generator, so that their order decides their values."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def normal(self, scale: float, *shape: int) -> NDArray[np.float32]:
        return self._rng.normal(0, scale, shape).astype(np.float32)

    def dense(self, name: str, inputs: int, outputs: int) -> Weights:
        return {f"{name}.weight": self.normal(0.3, outputs, inputs), f"{name}.bias": self.normal(0.1, outputs)}

    def embeddings(self, scale: float, rows_by_name: dict[str, int], width: int) -> Weights:
        return {f"{name}.weight": self.normal(scale, rows, width) for name, rows in rows_by_name.items()}

    def layer(self, prefix: str, names: _LayerNames, width: int, inner: int) -> Weights:
        weights: Weights = {}
        for name in names.projections:
            weights |= self.dense(f"{prefix}.{name}", width, width)
        weights |= self.dense(f"{prefix}.{names.inner[0]}", width, inner)
        weights |= self.dense(f"{prefix}.{names.inner[1]}", inner, width)
        for name in names.norms:
            weights |= _norm(f"{prefix}.{name}", width)
        return weights


def _norm(name: str, width: int) -> Weights:
    return {f"{name}.weight": np.ones(width, np.float32), f"{name}.bias": np.zeros(width, np.float32)}


def weights(seed: int = 5) -> Weights:
    """Return the encoder's and the head's weights, under transformers' names inside the classifier network."""
    rows = {"word": len(PIECES), "position": 512, "token_type": 2}
    random = _RandomWeights(seed)
    encoder = random.embeddings(
        0.5, {f"encoder.embeddings.{name}_embeddings": count for name, count in rows.items()}, WIDTH
    )
    encoder |= _norm("encoder.embeddings.LayerNorm", WIDTH)
    for index in range(LAYERS):
        encoder |= random.layer(f"encoder.encoder.layer.{index}", _BERT_LAYER, WIDTH, INNER)
    return encoder | random.dense("head", WIDTH, len(SENTIMENT.labels))


def history_weights(items: int, seed: int = 11) -> Weights:
    """Return a history model's weights, under the names of the history network. A repeated item counts most."""
    random, width = _RandomWeights(seed), 2 * HEADS
    attention = ATTENTION_HEADS * ATTENTION_WIDTH
    network = random.dense("enter", WIDTH, width) | random.dense("reader", width, HEADS)
    network |= random.dense("taste", width, WIDTH) | _norm("norm", width)
    network |= random.dense("look", WIDTH, attention) | random.dense("shown", width, attention)
    network |= random.dense("strength", width, ATTENTION_HEADS)
    rows = {"kinds": len(EVENT_TYPES), "ages": AGE_BUCKETS, "places": POSITION_BUCKETS}
    network |= random.embeddings(0.2, rows, width)
    for index in range(2):
        network |= random.layer(f"blocks.{index}", _HISTORY_LAYER, width, 2 * width)
    return network | {
        "ids.weight": random.normal(0.1, items, WIDTH),
        "known": np.ones(items, np.float32),
        "again": np.full((AGE_BUCKETS, ATTENTION_HEADS), 2.0, np.float32),
        "eyes": np.ones(ATTENTION_HEADS, np.float32),
        "often": np.ones(1, np.float32),
        "neighbours": np.stack([np.roll(np.arange(items, dtype=np.int32), -1 - row)[:3] for row in range(items)]),
        "nearness": np.tile(np.asarray([0.5, 0.2, -0.1], np.float32), (items, 1)),
        "centre": np.zeros(WIDTH, np.float32),
        "calibration": np.asarray([0.5, -3.0], np.float32),
    }


def write_tokenizer(path: Path) -> None:
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token_id,
                "content": piece,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token_id, piece in enumerate(SPECIAL)
        ],
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": space,
        "post_processor": None,
        "decoder": space,
        "model": {
            "type": "Unigram",
            "unk_id": 3,
            "vocab": [[piece, 0.0 if piece in SPECIAL else -3.0] for piece in PIECES],
            "byte_fallback": False,
        },
    }
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def tiny_bundle(folder: Path, task: Task = SENTIMENT) -> Path:
    """Write a bundle of the task into a new folder of `folder` with the task's name, and return that folder."""
    path = folder / task.name
    path.mkdir(parents=True)
    write_tokenizer(path / TOKENIZER)
    with_head = task.kind == "classification"
    graph_weights = {name: value for name, value in weights().items() if with_head or not name.startswith("head.")}
    save_graph(build_graph(graph_weights, HEADS, 1e-12, "int8"), path / GRAPH)
    (path / CARD).write_text("# Tiny\n\nFor tests.\n", encoding="utf-8")
    if task is INTENT:
        _write_heads_and_ranker(path)
    if task is RECOMMEND:
        _write_history_model_and_items(path)
    scaling = LogitScaling(1.5, 0.0, (0.1, -0.1, 0.0))
    manifest = Manifest(
        name=task.name,
        version="0.0.1",
        task=task,
        languages=("en", "zh"),
        max_tokens=task.max_tokens,
        base="tiny",
        base_digest="0" * 64,
        calibration={"en": scaling, "zh": scaling} if with_head else {},
        sources=(Source("none", "en", "none"),),
        metrics=(Metric("none", "en", "accuracy", 0.5, "heed evaluate"),) if with_head else (),
    )
    save_bundle(path, manifest)
    return path


def tiny_intent_bundle(folder: Path) -> Path:
    """Write the bundle `intent`: the encoder, two label sets that tell first characters apart, and a reply ranker."""
    return tiny_bundle(folder, INTENT)


def tiny_recommend_bundle(folder: Path) -> Path:
    """Write the bundle `recommend`: the encoder, a small history model and a catalogue of 40 items."""
    return tiny_bundle(folder, RECOMMEND)


def tiny_head(name: str, starts: Sequence[str], encoder: TextEncoder, digest: str) -> IntentHead:
    """Return a head for texts that repeat one character of `starts`. The character is the intent."""
    rows = [(start, start * length) for start in starts for length in range(3, 15)]
    vectors = encoder.encode_dialogues([(Turn("customer", text),) for _, text in rows])
    return fit_intent_head(name, ["en"], digest, Examples(vectors, tuple(start for start, _ in rows)))[0]


def graph_for_gpus(folder: Path) -> Path:
    """Write the encoder's graph with the precision for GPUs, which no bundle contains, and return its path."""
    save_graph(build_graph(weights(), HEADS, 1e-12, "fp16"), folder / "model.fp16.onnx")
    return folder / "model.fp16.onnx"


def _write_heads_and_ranker(path: Path) -> None:
    (path / heads.HEADS_FOLDER).mkdir()
    encoder, digest = _text_encoder(path, INTENT), file_digest(path / GRAPH)
    for name, starts in LABEL_SETS.items():
        save_head(tiny_head(name, starts, encoder, digest), path / heads.HEADS_FOLDER / f"{name}{SUFFIX}")
    random = _RandomWeights(8)
    dialogues, replies = (np.eye(WIDTH, dtype=np.float32) + random.normal(0.05, WIDTH, WIDTH) for _ in range(2))
    save_ranker(ReplyRanker(dialogues, replies, 5.0, -2.0, 0.3), path / RANKER)


def _write_history_model_and_items(path: Path) -> None:
    history = history_weights(len(CATALOGUE_ITEMS))
    save_file(history, path / HISTORY)
    indices = {item.item_id: index for index, item in enumerate(CATALOGUE_ITEMS)}
    vectors = _text_encoder(path, RECOMMEND).encode_texts([item.text for item in CATALOGUE_ITEMS])
    item_vectors = Recommender(history, CATALOGUE, indices).item_vectors(vectors, list(indices))
    save_items(path, CATALOGUE, CATALOGUE_ITEMS, item_vectors)


def _text_encoder(path: Path, task: Task) -> TextEncoder:
    return TextEncoder(OnnxRuntime(path / GRAPH), Tokenizer(path / TOKENIZER, task.max_tokens))
