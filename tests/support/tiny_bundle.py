"""A real bundle that is tiny: two layers of width 32 with fixed random weights, and a tokenizer of single characters.

Made in a fraction of a second, without torch. Its answers mean nothing and never change.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
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
from models.tasks import INTENT, RECOMMEND, SENTIMENT
from models.text.tokenizer import Tokenizer, Turn

LABEL_SETS = {"letters": "abc", "digits": "1234"}
WIDTH, HEADS, LAYERS, INNER = 32, 4, 2, 64
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
PIECES = [
    *SPECIAL,
    "▁",
    *map(chr, range(33, 127)),
    *"股票上涨下跌公司利润增长减持好坏中国平安银行手机质量快递一二三四五六七八九十的是不了",
]


def weights(seed: int = 5) -> dict[str, NDArray[np.float32]]:
    """Named as transformers' BERT is inside `models.network.Classifier`."""
    rng = np.random.default_rng(seed)

    def dense(name: str, inputs: int, outputs: int) -> dict[str, NDArray[np.float32]]:
        return {
            f"{name}.weight": rng.normal(0, 0.3, (outputs, inputs)).astype(np.float32),
            f"{name}.bias": rng.normal(0, 0.1, outputs).astype(np.float32),
        }

    def norm(name: str) -> dict[str, NDArray[np.float32]]:
        return {f"{name}.weight": np.ones(WIDTH, np.float32), f"{name}.bias": np.zeros(WIDTH, np.float32)}

    found = {
        f"encoder.embeddings.{name}_embeddings.weight": rng.normal(0, 0.5, (rows, WIDTH)).astype(np.float32)
        for name, rows in (("word", len(PIECES)), ("position", 512), ("token_type", 2))
    }
    found |= norm("encoder.embeddings.LayerNorm")
    for number in range(LAYERS):
        layer = f"encoder.encoder.layer.{number}"
        for part in ("query", "key", "value"):
            found |= dense(f"{layer}.attention.self.{part}", WIDTH, WIDTH)
        found |= dense(f"{layer}.attention.output.dense", WIDTH, WIDTH) | norm(f"{layer}.attention.output.LayerNorm")
        found |= dense(f"{layer}.intermediate.dense", WIDTH, INNER) | dense(f"{layer}.output.dense", INNER, WIDTH)
        found |= norm(f"{layer}.output.LayerNorm")
    return found | dense("head", WIDTH, len(SENTIMENT.labels))


def write_tokenizer(path: Path) -> None:
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": piece,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, piece in enumerate(SPECIAL)
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


def tiny_intent_bundle(folder: Path) -> Path:
    """The same encoder without a head, in a new folder `intent` of `folder`: two label sets of what first words say."""
    path = folder / "intent"
    (path / heads.HEADS_FOLDER).mkdir(parents=True)
    write_tokenizer(path / TOKENIZER)
    body = {name: value for name, value in weights().items() if not name.startswith("head.")}
    save_graph(build_graph(body, HEADS, 1e-12, "int8"), path / GRAPH)
    (path / CARD).write_text("# Tiny\n\nFor tests.\n", encoding="utf-8")
    encoder = file_digest(path / GRAPH)
    reader = TextEncoder(OnnxRuntime(path / GRAPH), Tokenizer(path / TOKENIZER, INTENT.max_tokens))
    for name, starts in LABEL_SETS.items():
        head = tiny_head(name, starts, reader, encoder)
        save_head(head, path / heads.HEADS_FOLDER / f"{name}{SUFFIX}")
    rng = np.random.default_rng(8)
    projections = [
        np.eye(WIDTH, dtype=np.float32) + rng.normal(0, 0.05, (WIDTH, WIDTH)).astype(np.float32) for _ in "ab"
    ]
    save_ranker(ReplyRanker(projections[0], projections[1], 5.0, -2.0, 0.3), path / RANKER)
    save_bundle(
        path,
        Manifest(
            name="intent",
            version="0.0.1",
            task=INTENT,
            languages=("en", "zh"),
            max_tokens=INTENT.max_tokens,
            base="tiny",
            base_digest="0" * 64,
            calibration={},
            sources=(Source("none", "en", "none"),),
            metrics=(),
        ),
    )
    return path


def tiny_head(name: str, starts: Sequence[str], reader: TextEncoder, encoder: str) -> IntentHead:
    """Tells texts apart that consist of one character of `starts` again and again; the character is the intent."""
    rows = [(start, start * length) for start in starts for length in range(3, 15)]
    vectors = reader.encode_dialogues([(Turn("customer", text),) for _, text in rows])
    return fit_intent_head(name, ["en"], encoder, Examples(vectors, tuple(start for start, _ in rows)))[0]


CATALOGUE = "letters"
CATALOGUE_ITEMS = tuple(
    Item(f"item-{start}{length}", start * length, {"price": float(length), "kind": start}, float(length % 5))
    for start in "abc上下"
    for length in range(1, 9)
)
EYES, EYE = 2, 4


def history_weights(items: int, seed: int = 11) -> dict[str, NDArray[np.float32]]:
    """Named as `models.recommender.HistoryNetwork` names them; an item that comes again counts most."""
    rng = np.random.default_rng(seed)
    inner = 2 * HEADS

    def dense(name: str, inputs: int, outputs: int) -> dict[str, NDArray[np.float32]]:
        return {
            f"{name}.weight": rng.normal(0, 0.3, (outputs, inputs)).astype(np.float32),
            f"{name}.bias": rng.normal(0, 0.1, outputs).astype(np.float32),
        }

    def norm(name: str) -> dict[str, NDArray[np.float32]]:
        return {f"{name}.weight": np.ones(inner, np.float32), f"{name}.bias": np.zeros(inner, np.float32)}

    found = dense("enter", WIDTH, inner) | dense("reader", inner, HEADS) | dense("taste", inner, WIDTH) | norm("norm")
    found |= dense("look", WIDTH, EYES * EYE) | dense("shown", inner, EYES * EYE) | dense("strength", inner, EYES)
    for name, rows in (("kinds", len(EVENT_TYPES)), ("ages", AGE_BUCKETS), ("places", POSITION_BUCKETS)):
        found[f"{name}.weight"] = rng.normal(0, 0.2, (rows, inner)).astype(np.float32)
    for number in range(2):
        block = f"blocks.{number}"
        for part in ("query", "key", "value", "output"):
            found |= dense(f"{block}.attention.{part}", inner, inner)
        found |= dense(f"{block}.inner", inner, 2 * inner) | dense(f"{block}.output", 2 * inner, inner)
        found |= norm(f"{block}.attention_norm") | norm(f"{block}.inner_norm")
    return found | {
        "ids.weight": rng.normal(0, 0.1, (items, WIDTH)).astype(np.float32),
        "known": np.ones(items, np.float32),
        "again": np.full((AGE_BUCKETS, EYES), 2.0, np.float32),
        "eyes": np.ones(EYES, np.float32),
        "often": np.ones(1, np.float32),
        "neighbours": np.stack([np.roll(np.arange(items, dtype=np.int32), -1 - row)[:3] for row in range(items)]),
        "nearness": np.tile(np.asarray([0.5, 0.2, -0.1], np.float32), (items, 1)),
        "centre": np.zeros(WIDTH, np.float32),
        "calibration": np.asarray([0.5, -3.0], np.float32),
    }


def tiny_recommend_bundle(folder: Path) -> Path:
    """The encoder of the others and a small history model, in a new folder `recommend` of `folder`; 40 items."""
    path = folder / "recommend"
    path.mkdir(parents=True)
    write_tokenizer(path / TOKENIZER)
    body = {name: value for name, value in weights().items() if not name.startswith("head.")}
    save_graph(build_graph(body, HEADS, 1e-12, "int8"), path / GRAPH)
    (path / CARD).write_text("# Tiny\n\nFor tests.\n", encoding="utf-8")
    own = history_weights(len(CATALOGUE_ITEMS))
    save_file(own, path / HISTORY)
    reader = TextEncoder(OnnxRuntime(path / GRAPH), Tokenizer(path / TOKENIZER, RECOMMEND.max_tokens))
    ids = {item.item_id: number for number, item in enumerate(CATALOGUE_ITEMS)}
    raw = reader.encode_texts([item.text for item in CATALOGUE_ITEMS])
    save_items(path, CATALOGUE, CATALOGUE_ITEMS, Recommender(own, CATALOGUE, ids).item_vectors(raw, list(ids)))
    save_bundle(
        path,
        Manifest(
            name="recommend",
            version="0.0.1",
            task=RECOMMEND,
            languages=("en", "zh"),
            max_tokens=RECOMMEND.max_tokens,
            base="tiny",
            base_digest="0" * 64,
            calibration={},
            sources=(Source("none", "en", "none"),),
            metrics=(),
        ),
    )
    return path


def graph_for_gpus(folder: Path) -> Path:
    """Write one, as no bundle holds it, into a folder."""
    save_graph(build_graph(weights(), HEADS, 1e-12, "fp16"), folder / "model.fp16.onnx")
    return folder / "model.fp16.onnx"


def tiny_bundle(folder: Path) -> Path:
    """Write the bundle into a new folder `sentiment` of `folder`, and return it."""
    path = folder / "sentiment"
    path.mkdir(parents=True)
    write_tokenizer(path / TOKENIZER)
    save_graph(build_graph(weights(), HEADS, 1e-12, "int8"), path / GRAPH)
    (path / CARD).write_text("# Tiny\n\nFor tests.\n", encoding="utf-8")
    scaling = LogitScaling(1.5, 0.0, (0.1, -0.1, 0.0))
    save_bundle(
        path,
        Manifest(
            name="sentiment",
            version="0.0.1",
            task=SENTIMENT,
            languages=("en", "zh"),
            max_tokens=SENTIMENT.max_tokens,
            base="tiny",
            base_digest="0" * 64,
            calibration={"en": scaling, "zh": scaling},
            sources=(Source("none", "en", "none"),),
            metrics=(Metric("none", "en", "accuracy", 0.5, "heed evaluate"),),
        ),
    )
    return path
