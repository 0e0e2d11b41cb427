"""FastAPI by hand, without batching: each uvicorn worker has one ONNX Runtime thread and answers one request at a time.

The model is called in the event loop, which is both the simplest and the fastest with one thread per worker.
"""

from __future__ import annotations

from fastapi import FastAPI
from onnx_classifier import Answer, Classifier
from pydantic import BaseModel


class Question(BaseModel):
    inputs: str | list[str]


app = FastAPI()
classify = Classifier()


@app.post("/predict")
async def predict(question: Question) -> list[Answer]:
    return classify([question.inputs] if isinstance(question.inputs, str) else question.inputs)
