"""Export of a recommender: a training folder becomes a bundle with its own catalogue, unless the graph drifts.

Item vectors come from the graph that serves, so they include its rounding. Serving the bundle needs no torch.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression

from models.bundle import TOKENIZER, Bundle, Source
from models.catalogue.items import Item
from models.data.interactions import RETAIL, Split, load_held_out
from models.evaluation.recommendation import hit_mask, measure_recommender, metrics_of_recommender, rank_users
from models.export.card_recommendation import render_recommendation_card
from models.export.parity import ParityError
from models.export.staging import check_graphs, make_manifest, publish, staging, write_graph
from models.networks.encoder import Embedder
from models.networks.torch_runtime import TorchRuntime
from models.prediction.normalize import l2_normalize
from models.ranking.bundle_files import WEIGHTS as HISTORY_WEIGHTS
from models.ranking.bundle_files import save_items, training_index_by_id
from models.ranking.recommender import Recommender
from models.recommender_training.recommendation import HISTORY, VECTORS, load_encoder, load_recommend_run
from models.runtime.offline import TextEncoder
from models.runtime.onnx import OnnxRuntime
from models.tasks import RECOMMEND
from models.text.tokenizer import Tokenizer

MIN_COSINE = 0.99
"""The least mean cosine between the vectors of a graph and of torch on the catalogue's texts, both centred."""

LICENCE = "CC-BY-4.0"
Array = NDArray[np.float32]
CALIBRATED_RANKS = 10
"""The ranks whose scores are calibrated. Lower ranks follow other odds."""


def export_recommend(run: Path, data: Path, out: Path, version: str, log: Callable[[str], None]) -> Bundle:
    """Write the bundle `out` from the training folder `run`.

    Raises ParityError if the graph drifts, and then leaves `out` alone.
    """
    trained = load_recommend_run(run)
    tokenizer = Tokenizer(run / TOKENIZER, RECOMMEND.max_tokens)
    with staging(out, run) as building:
        network, split = load_encoder(run, trained), load_held_out(data)
        texts = split.training.texts
        write_graph(network, "int8", building)
        parity, runtime = check_graphs(
            building, lambda name, runtime: check_item_vectors(name, network, runtime, tokenizer, texts), log
        )
        history, vectors = export_item_vectors(run, split, TextEncoder(runtime, tokenizer).encode_texts(texts))
        save_file(history, building / HISTORY_WEIGHTS)
        save_items(building, RETAIL, catalogue_items(data, split), vectors)
        recommender = Recommender(history, RETAIL, training_index_by_id(split.training.ids, history["known"]), vectors)
        sources = [Source(RETAIL, "en", LICENCE)]
        manifest = make_manifest(out.name, version, RECOMMEND, trained.base, ("en", "zh"), sources)
        measured = measure_recommender(recommender, vectors, split)
        final = replace(manifest, metrics=metrics_of_recommender(out.name, measured))
        return publish(building, out, final, render_recommendation_card(manifest, measured, parity, trained))


def export_item_vectors(run: Path, split: Split, raw: NDArray[np.float32]) -> tuple[dict[str, Array], Array]:
    """Return the calibrated history weights, and item vectors (items, width) from the texts' vectors `raw`."""
    history: dict[str, Array] = load_file(run / HISTORY)
    history["ids.weight"] *= history["known"][:, None]
    history |= {"centre": load_file(run / VECTORS)["vectors"].mean(axis=0)}
    history |= {"calibration": np.asarray([1.0, 0.0], np.float32)}
    ids = training_index_by_id(split.training.ids, history["known"])
    vectors = Recommender(history, RETAIL, ids).item_vectors(raw, split.training.ids)
    history["calibration"] = fit_score_scaling(Recommender(history, RETAIL, ids, vectors), vectors, split)
    return history, vectors


def check_item_vectors(
    name: str, network: Embedder, runtime: OnnxRuntime, tokenizer: Tokenizer, texts: tuple[str, ...]
) -> str:
    """Return a sentence on how close the graph's item vectors are to the trained network's. Raises ParityError."""
    expected, vectors = (TextEncoder(each, tokenizer).encode_texts(texts) for each in (TorchRuntime(network), runtime))
    centre = expected.mean(axis=0)
    cosines = (l2_normalize(expected - centre) * l2_normalize(vectors - centre)).sum(axis=1)
    if cosines.mean() < MIN_COSINE:
        raise ParityError(f"{name}: its vectors have a mean cosine of {cosines.mean():.4f} to torch's")
    return (
        f"`{name}` against the trained encoder in fp32 (torch), {len(texts)} item texts: the mean cosine of the "
        f"centred vectors is {cosines.mean():.4f}, the least {cosines.min():.4f}."
    )


def fit_score_scaling(recommender: Recommender, vectors: NDArray[np.float32], split: Split) -> NDArray[np.float32]:
    """Return the slope and offset that turn the scores of a user's top ten into probabilities (Platt 1999)."""
    rankings, scores = rank_users(recommender, vectors, split)
    hits = hit_mask(rankings[:, :CALIBRATED_RANKS], split.targets)
    clipped = np.clip(scores[:, :CALIBRATED_RANKS].astype(np.float64), 1e-12, 1 - 1e-12)
    log_odds = np.log(clipped / (1 - clipped))
    model = LogisticRegression(C=1e6).fit(log_odds.reshape(-1, 1), hits.ravel())
    return np.asarray([model.coef_[0, 0], model.intercept_[0]], np.float32)


def catalogue_items(data: Path, split: Split) -> list[Item]:
    """Return the items with their price, and as popularity how many users bought them before their last basket."""
    with gzip.open(data / RETAIL / "items.jsonl.gz", "rt", encoding="utf-8") as file:
        prices = {row["item_id"]: float(row["median_price"]) for row in map(json.loads, file)}
    users = np.zeros(len(split.training.ids))
    for sequence in split.training.users.values():
        users[np.unique(sequence.items)] += 1
    rows = zip(split.training.ids, split.training.texts, users.tolist(), strict=True)
    return [Item(item_id, text, {"price": prices[item_id]}, popularity) for item_id, text, popularity in rows]
