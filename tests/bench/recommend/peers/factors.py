"""The prediction of `implicit` with the Python of `.venv/bench-recommend`: least squares with a folded-in history.

Arguments: items, candidates (0: all items), top k, seconds. Prints p50_ms and per_s as JSON. The factors are random,
because speed does not depend on their values.
"""

import json
import sys
import time
from statistics import median

import numpy as np
from implicit.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix

FACTORS, EVENTS, USERS = 384, 50, 64


def main() -> None:
    items, candidates, top_k = map(int, sys.argv[1:4])
    rng = np.random.default_rng(17)
    model = AlternatingLeastSquares(factors=FACTORS, num_threads=1)
    model.item_factors = rng.normal(size=(items, FACTORS)).astype(np.float32)
    model.user_factors = np.zeros((1, FACTORS), np.float32)
    requests = []
    for _ in range(USERS):
        bought = rng.choice(items, EVENTS, replace=False)
        history = csr_matrix((np.ones(EVENTS, np.float32), (np.zeros(EVENTS, int), bought)), shape=(1, items))
        requests.append((history, np.sort(rng.choice(items, candidates, replace=False)) if candidates else None))
    times_s: list[float] = []
    started_s = time.perf_counter()
    while time.perf_counter() - started_s < float(sys.argv[4]):
        history, candidate_ids = requests[len(times_s) % USERS]
        call_started_s = time.perf_counter()
        model.recommend(
            0, history, N=top_k, filter_already_liked_items=False, items=candidate_ids, recalculate_user=True
        )
        times_s.append(time.perf_counter() - call_started_s)
    times_s = times_s[1:]  # the first call computes what all users share
    print(json.dumps({"p50_ms": median(times_s) * 1000, "per_s": len(times_s) / sum(times_s)}))


main()
