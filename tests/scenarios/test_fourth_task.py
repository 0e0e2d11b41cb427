"""A fourth text task needs a row of `TASKS` and a route: bundles, engines, metrics and `/v1/models` take any task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from models.bundle import load_bundle
from models.tasks import TASKS, Task
from service.api.gateway import create_app
from service.http.body import JsonBody
from service.http.hot_route import add_hot_route, request_deadline_s
from service.http.openapi import Operation
from service.http.responses import as_list, results_response
from service.inference.assembly import open_engine
from service.inference.predictor import Classification, Item, Predictor
from service.schemas.sentiment import SentimentRequest, SentimentResponse
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.service.telemetry.test_metrics import samples
from tests.support.tiny_bundle import tiny_bundle

pytestmark = pytest.mark.anyio

TOXICITY = Task(
    name="toxicity",
    kind="classification",
    labels=("none", "mild", "severe"),
    max_tokens=64,
    headline_metric="macro_f1",
    folder="toxicity",
    example='{"inputs": "you again"}',
)


def add_toxicity(app: FastAPI, predictor: Predictor, settings: Settings) -> None:
    reader = JsonBody(SentimentRequest, settings.max_body_bytes, settings.request_timeout_s)

    async def toxicity(request: Request) -> Response:
        deadline_s = request_deadline_s(request, settings)
        body = await reader.read(request)
        answer = await predictor.predict([Item(str(text)) for text in as_list(body.inputs)], body.truncate, deadline_s)
        return results_response(predictor, [result_of(outcome) for outcome in answer.outcomes], answer.timings)

    operation = Operation("classify_toxicity", "Toxicity", "Classify the toxicity of texts")
    add_hot_route(app, "/v1/toxicity", toxicity, SentimentRequest, SentimentResponse, operation)


def result_of(outcome: object) -> dict[str, Any]:
    assert isinstance(outcome, Classification)
    return {"label": outcome.label, "scores": outcome.scores}


async def test_a_row_and_a_route_serve_a_fourth_task(
    tmp_path: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS, TOXICITY.name, TOXICITY)
    settings, bundle = Settings(), load_bundle(tiny_bundle(tmp_path, TOXICITY))
    predictors = {TOXICITY.name: open_engine(bundle, settings, metrics.task(TOXICITY.name))}
    app = create_app(predictors, settings, metrics)
    add_toxicity(app, predictors[TOXICITY.name], settings)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed")
    async with client, app.router.lifespan_context(app):
        answer = (await client.post("/v1/toxicity", json={"inputs": ["up", "股票"]})).json()
        (model,) = (await client.get("/v1/models")).json()["models"]
    assert (answer["model"], len(answer["results"])) == ("toxicity", 2)
    for result in answer["results"]:
        assert list(result["scores"]) == list(TOXICITY.labels)
        assert result["label"] == max(result["scores"], key=result["scores"].__getitem__)
    assert (model["task"], model["labels"]) == ("toxicity", list(TOXICITY.labels))
    assert samples(metrics)["heed_infer_seconds_count", "toxicity"] >= 1
