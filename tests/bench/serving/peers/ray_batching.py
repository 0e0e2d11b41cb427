"""Ray Serve as its tutorial starts it: default ingress, `@serve.batch`, one replica per core with one thread each.

`max_ongoing_requests` is raised, because its default would limit every batch to 5 requests.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from onnx_classifier import Answer, Classifier
from ray import serve
from starlette.requests import Request

CORES, MAX_REQUESTS, WAIT_S, MAX_ONGOING = int(os.environ["CORES"]), 16, 0.005, 100


@serve.deployment(num_replicas=CORES, max_ongoing_requests=MAX_ONGOING)
class Sentiment:
    def __init__(self) -> None:
        self.classify = Classifier()

    @serve.batch(max_batch_size=MAX_REQUESTS, batch_wait_timeout_s=WAIT_S)
    async def predict(self, requests: list[list[str]]) -> list[list[Answer]]:
        answers = iter(self.classify([text for texts in requests for text in texts]))
        return [[next(answers) for _ in texts] for texts in requests]

    async def __call__(self, request: Request) -> Any:
        inputs = (await request.json())["inputs"]
        return await self.predict([inputs] if isinstance(inputs, str) else inputs)


if __name__ == "__main__":
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Sentiment.bind(), route_prefix="/predict")
    signal.pause()
