"""BentoML with its adaptive batching: one worker process per core, one ONNX Runtime thread each.

A batchable method takes a list and returns a list of equal length. BentoML joins the lists of several requests.
BentoML reads the annotations, so they are not postponed.
"""

import os

import bentoml
from onnx_classifier import Classifier

MAX_TEXTS, MAX_LATENCY_MS = 32, 10_000


@bentoml.service(workers=int(os.environ["CORES"]), logging={"access": {"enabled": False}}, traffic={"timeout": 60})
class Sentiment:
    def __init__(self) -> None:
        self.classify = Classifier()

    @bentoml.api(batchable=True, max_batch_size=MAX_TEXTS, max_latency_ms=MAX_LATENCY_MS)
    def predict(self, inputs: list[str]) -> list[dict]:
        return self.classify(inputs)
