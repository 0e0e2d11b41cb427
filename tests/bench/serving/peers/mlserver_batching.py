"""MLServer with its adaptive batching: one worker process per core, one ONNX Runtime thread each.

It speaks the Open Inference Protocol. A request is a tensor of strings, an answer a tensor of labels and a tensor of
scores. Needs numpy below 2, and thus a separate environment.
"""

from __future__ import annotations

import asyncio
import os
import tempfile

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse
from onnx_classifier import Classifier

MAX_REQUESTS, WAIT_S = 16, 0.005


class Sentiment(MLModel):
    async def load(self) -> bool:
        self.classify = Classifier()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        answers = self.classify(StringCodec.decode_input(payload.inputs[0]))
        scores = np.array([list(answer["scores"].values()) for answer in answers])
        labels = StringCodec.encode_output("label", [answer["label"] for answer in answers])
        return InferenceResponse(model_name=self.name, outputs=[labels, NumpyCodec.encode_output("scores", scores)])


async def main(folder: str) -> None:
    settings = Settings(
        host="127.0.0.1",
        http_port=int(os.environ["PORT"]),
        grpc_port=int(os.environ["PORT"]) + 1,
        metrics_port=int(os.environ["PORT"]) + 2,
        parallel_workers=int(os.environ["CORES"]),
        debug=False,
        metrics_dir=folder,
        environments_dir=folder,
    )
    model = ModelSettings(
        name="sentiment",
        implementation="mlserver_batching.Sentiment",
        max_batch_size=MAX_REQUESTS,
        max_batch_time=WAIT_S,
        parameters=ModelParameters(),
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(folder))
