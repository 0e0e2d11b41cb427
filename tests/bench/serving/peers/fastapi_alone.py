"""A hand-made FastAPI service without batching. Each uvicorn worker has one ONNX Runtime thread.

The model runs in the event loop. This is the simplest and the fastest way with one thread per worker.
"""

from __future__ import annotations

from fastapi import FastAPI
from onnx_classifier import Answer, Classifier
from pydantic import BaseModel


class Body(BaseModel):
    inputs: str | list[str]


app = FastAPI()
classify = Classifier()


@app.post("/predict")
async def predict(body: Body) -> list[Answer]:
    return classify([body.inputs] if isinstance(body.inputs, str) else body.inputs)
