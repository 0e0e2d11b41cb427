"""Items by their texts alone: the cosine of an encoder's vectors, before that has seen any of this.

Between all of them it is large; without their mean, what tells them apart counts (Mu and Viswanath 2018).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from models.bundle import TOKENIZER
from models.data.interactions import Split
from models.evaluation.ranking_metrics import sort_by_score
from models.export.torch_runtime import TorchRuntime
from models.networks.encoder import Embedder, base_file, load_base_encoder
from models.prediction.normalize import l2_normalize
from models.runtime.offline import TextEncoder
from models.text.tokenizer import Tokenizer, adapt_tokenizer
from tests.bench.recommend_quality.methods import Method, directly, grid
from tests.bench.recommend_quality.simple import Rankings, Scores

MAX_TOKENS = 64
RAW = "raw encoder"
PREFIXES = ("", "query: ")
"""E5 is trained with one before each text."""


def raw_encoder(base: str, texts: Sequence[str]) -> Iterator[Method]:
    vectors = {prefix: embedded(base, [prefix + text for text in texts]) for prefix in PREFIXES}
    yield similar(RAW, vectors)
    around = {prefix: l2_normalize(found - found.mean(axis=0)) for prefix, found in vectors.items()}
    yield similar(f"{RAW}, without its mean", around)


def similar(name: str, vectors: Mapping[str, Scores]) -> Method:
    """`vectors` (items, width) with each prefix, of length 1."""

    def near(split: Split, prefix: str, baskets: int | None) -> Rankings:
        """`baskets`: the history's newest that are read, all where None."""
        items = vectors[prefix]
        means = [items[trail.items[trail.baskets > newest(trail.baskets[-1], baskets)]] for trail in split.histories]
        return sort_by_score(l2_normalize(np.stack([one.mean(axis=0) for one in means])) @ items.T)

    return Method(name, directly(near), grid(prefix=PREFIXES, baskets=(None, 1)))


def newest(last: int, baskets: int | None) -> int:
    return -1 if baskets is None else last - baskets


def embedded(base: str, texts: Sequence[str]) -> Scores:
    """Unit vectors, (texts, width)."""
    with tempfile.TemporaryDirectory() as folder:
        adapt_tokenizer(base_file(base, TOKENIZER), Path(folder) / TOKENIZER)
        tokenizer = Tokenizer(Path(folder) / TOKENIZER, MAX_TOKENS)
        return l2_normalize(TextEncoder(TorchRuntime(Embedder(load_base_encoder(base))), tokenizer).encode_texts(texts))
