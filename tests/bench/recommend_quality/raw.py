"""Items by their texts alone: the cosine of the vectors of a base encoder, before training on these sets.

All cosines are large. Subtracting the mean vector makes the differences count (Mu and Viswanath 2018).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from models.bundle import TOKENIZER
from models.data.interactions import Split
from models.evaluation.ranking_metrics import sort_by_score
from models.networks.encoder import Embedder, base_file, load_base_encoder
from models.networks.torch_runtime import TorchRuntime
from models.prediction.normalize import l2_normalize
from models.runtime.offline import TextEncoder
from models.text.tokenizer import Tokenizer, adapt_tokenizer
from tests.bench.recommend_quality.methods import Method, as_rank, grid
from tests.bench.recommend_quality.simple import Rankings, Scores

MAX_TOKENS = 64
RAW = "raw encoder"
PREFIXES = ("", "query: ")
"""Prefixes of a text. E5 is trained with the second."""


def raw_encoder(base: str, texts: Sequence[str]) -> Iterator[Method]:
    vectors = {prefix: embed(base, [prefix + text for text in texts]) for prefix in PREFIXES}
    yield cosine_method(RAW, vectors)
    centred = {prefix: l2_normalize(values - values.mean(axis=0)) for prefix, values in vectors.items()}
    yield cosine_method(f"{RAW}, without its mean", centred)


def cosine_method(name: str, vectors: Mapping[str, Scores]) -> Method:
    """Return the method for unit vectors (items, width) by prefix."""

    def near(split: Split, prefix: str, baskets: int | None) -> Rankings:
        """Rank by the newest `baskets` of the history, or by all if None."""
        items = vectors[prefix]
        histories = [
            items[sequence.items[sequence.baskets > newest(sequence.baskets[-1], baskets)]]
            for sequence in split.histories
        ]
        return sort_by_score(l2_normalize(np.stack([rows.mean(axis=0) for rows in histories])) @ items.T)

    return Method(name, as_rank(near), grid(prefix=PREFIXES, baskets=(None, 1)))


def newest(last: int, baskets: int | None) -> int:
    return -1 if baskets is None else last - baskets


def embed(base: str, texts: Sequence[str]) -> Scores:
    """Return unit vectors (texts, width)."""
    with tempfile.TemporaryDirectory() as folder:
        adapt_tokenizer(base_file(base, TOKENIZER), Path(folder) / TOKENIZER)
        tokenizer = Tokenizer(Path(folder) / TOKENIZER, MAX_TOKENS)
        return l2_normalize(TextEncoder(TorchRuntime(Embedder(load_base_encoder(base))), tokenizer).encode_texts(texts))
