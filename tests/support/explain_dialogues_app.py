"""A service that explains intents and replies in this process, with a real bundle, and a client of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

from models.bundle import Bundle
from models.runtime.onnx import OnnxRuntime
from models.text.tokenizer import Tokenizer
from service.api.gateway import create_app
from service.explanation.worker import ExplainableModel, ExplanationWorker
from service.inference.cache import CachedPredictor
from service.inference.engine import Engine
from service.registry.heads import HeadRegistry
from service.schemas.explain import ExplainIntentResponse, ExplainRepliesResponse
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support import fake_model as fakes

INTENT, REPLIES = "/v1/explain/intent", "/v1/explain/replies"

PATIENCE = {"X-Request-Timeout-Ms": "60000"}

DIALOGUE = [
    {"speaker": "customer", "text": "  aa 利润"},
    {"speaker": "agent", "text": "c?"},
    {"speaker": "customer", "text": "bb 👍🏽 b "},
]

CANDIDATES = ["aaaa", "bbbb", "1234"]


@dataclass(frozen=True)
class Explains:
    client: httpx.AsyncClient
    registry: HeadRegistry

    async def intent(self, inputs: Any, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        return await self.client.post(INTENT, json={"inputs": inputs, **more}, headers=headers)

    async def reply(self, **body: Any) -> httpx.Response:
        return await self.client.post(REPLIES, json={"turns": DIALOGUE, **body})


def app_of(bundle: Bundle, registry: HeadRegistry, metrics: Metrics, explains: bool) -> Any:
    task = metrics.task("intent")
    tokenizer = Tokenizer.from_bundle(bundle)
    engine = Engine(bundle, tokenizer, OnnxRuntime(bundle.graph), fakes.LIMITS, task)
    explanations = (
        ExplanationWorker({"intent": ExplainableModel(bundle, tokenizer)}, lambda: engine.busy) if explains else None
    )
    labels = "letters" if "letters" in registry.heads else "banking77"
    return create_app(
        {"intent": CachedPredictor(engine, 0, task)}, Settings(label_set=labels), metrics, registry, explanations
    )


def results(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    kind = ExplainIntentResponse if "label_set" in answer.json() else ExplainRepliesResponse
    kind.model_validate_json(answer.content)
    result: list[dict[str, Any]] = answer.json()["results"]
    return result


def assert_words_are_of(turns: list[dict[str, Any]], sent: list[dict[str, str]]) -> None:
    for turn in turns:
        text = sent[turn["turn"]]["text"]
        assert [text[word["start"] : word["end"]] for word in turn["words"]] == [w["text"] for w in turn["words"]]
        assert "".join(word["text"] for word in turn["words"]) == "".join(text.split())
