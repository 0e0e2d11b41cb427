"""Rankings of `implicit`: item neighbours, alternating least squares and Bayesian personalised ranking.

Usage: python matrices.py SPLIT.npz SETTING.json FOLDER. Writes FOLDER/rankings.npy.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, TFIDFRecommender
from scipy.sparse import csr_matrix

NEIGHBOURS = {"cosine": CosineRecommender, "tfidf": TFIDFRecommender, "bm25": BM25Recommender}


def count_matrix(split, weights):
    lengths = np.diff(split["offsets"])
    users = np.repeat(np.arange(len(lengths)), lengths)
    shape = (len(lengths), int(split["item_count"]))
    counts = csr_matrix((np.ones(len(users), np.float32), (users, split["items"])), shape)
    counts.sum_duplicates()
    transform = {"counts": np.array, "log": np.log1p, "once": np.ones_like}[weights]
    counts.data = transform(counts.data).astype(np.float32)
    return counts


def scores(split, method, weights="counts", **settings):
    matrix, users = count_matrix(split, weights), split["asked"]
    if method in NEIGHBOURS:
        model = NEIGHBOURS[method](num_threads=1, **settings)
        model.fit(matrix, show_progress=False)
        return np.asarray((matrix[users] @ model.similarity).todense())
    kind = {"als": AlternatingLeastSquares, "bpr": BayesianPersonalizedRanking}[method]
    model = kind(num_threads=1, random_state=0, **settings)
    model.fit(matrix, show_progress=False)
    return model.user_factors[users] @ model.item_factors.T


def main():
    split = np.load(sys.argv[1])
    item_scores = scores(split, **json.loads(Path(sys.argv[2]).read_text()))
    popular = np.argsort(-np.bincount(split["items"], minlength=item_scores.shape[1]), kind="stable")
    order = popular[np.argsort(-item_scores[:, popular], axis=1, kind="stable")]
    np.save(Path(sys.argv[3]) / "rankings.npy", order.astype(np.int32))


if __name__ == "__main__":
    main()
