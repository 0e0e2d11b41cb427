"""LitServe with its batching: one worker process per core, one ONNX Runtime thread each.

A request may have several texts, so the batch is flattened before the model and split into requests after it. LitServe
reads the annotations, so they are not postponed.
"""

import os
from typing import Any

import litserve
from onnx_classifier import Answer, Classifier

MAX_REQUESTS, TIMEOUT_S = 16, 0.005


class Sentiment(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.classify = Classifier()

    def decode_request(self, request: dict[str, Any]) -> list[str]:
        inputs = request["inputs"]
        return [inputs] if isinstance(inputs, str) else inputs

    def predict(self, requests: list[list[str]]) -> list[list[Answer]]:
        answers = iter(self.classify([text for texts in requests for text in texts]))
        return [[next(answers) for _ in texts] for texts in requests]

    def encode_response(self, output: list[Answer]) -> list[Answer]:
        return output


if __name__ == "__main__":
    api = Sentiment(max_batch_size=MAX_REQUESTS, batch_timeout=TIMEOUT_S)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(os.environ["CORES"]))
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, access_log=False)
