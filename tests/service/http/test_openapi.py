"""The OpenAPI document, of a service with every route."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from service.api.gateway import TAGS, create_app
from service.http.openapi import document, request_models
from service.schemas.wire import FailedItem, ProblemBody, WireModel
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support import fake_model
from tests.support.whole_app import app_without_models


@pytest.fixture
def app(metrics: Metrics) -> FastAPI:
    return app_without_models(metrics)


def operations(app: FastAPI) -> dict[str, dict[str, Any]]:
    """Entries of routes by method and path."""
    paths = document(app)["paths"]
    return {f"{method.upper()} {path}": entry for path, methods in paths.items() for method, entry in methods.items()}


def models_of(app: FastAPI) -> list[type[WireModel]]:
    """Models of requests and of answers."""
    responses = [route.response_model for route in app.routes if isinstance(route, APIRoute) and route.response_model]
    return [*request_models(app), *responses, ProblemBody, FailedItem]


def test_operation_ids_are_names_of_methods(app: FastAPI) -> None:
    assert {name: entry["operationId"] for name, entry in operations(app).items()} == {
        "POST /v1/sentiment": "classify_sentiment",
        "POST /v1/intent": "classify_intent",
        "POST /v1/replies": "rank_replies",
        "POST /v1/recommend": "recommend_items",
        "PUT /v1/catalogues/{name}/items": "edit_catalogue",
        "GET /v1/catalogues": "list_catalogues",
        "GET /v1/catalogues/{name}": "get_catalogue",
        "POST /v1/explain/sentiment": "explain_sentiment",
        "POST /v1/explain/intent": "explain_intent",
        "POST /v1/explain/replies": "explain_replies",
        "POST /v1/explain/recommend": "explain_recommendation",
        "GET /v1/models": "list_models",
        "GET /healthz": "get_health",
        "GET /readyz": "get_readiness",
        "GET /metrics": "get_metrics",
    }


def test_every_route_has_a_group_a_summary_and_a_description(app: FastAPI) -> None:
    entries = operations(app).values()
    summaries = [entry["summary"] for entry in entries]
    assert len(set(summaries)) == len(summaries)
    assert all(len(summary) <= 60 for summary in summaries)
    assert all(entry["description"].strip().endswith(".") for entry in entries)
    assert [tag["name"] for tag in document(app)["tags"]] == list(TAGS)
    assert {tag for entry in entries for tag in entry["tags"]} == set(TAGS)


def test_all_problems_are_one_component(app: FastAPI) -> None:
    (problem,) = document(app)["components"]["responses"].values()
    assert list(problem["content"]) == ["application/problem+json"]
    for entry in operations(app).values():
        for status, response in entry["responses"].items():
            assert (response.get("$ref") == "#/components/responses/Problem") is (status >= "400")


def test_references_resolve(app: FastAPI) -> None:
    whole = document(app)
    for kind, name in re.findall(r'"\$ref": "#/components/(\w+)/(\w+)"', json.dumps(whole)):
        assert name in whole["components"][kind]


def test_every_request_and_answer_has_an_example(app: FastAPI) -> None:
    schemas = document(app)["components"]["schemas"]
    for model in models_of(app):
        assert schemas[model.__name__]["examples"], model


def test_examples_fit_their_schemas(app: FastAPI) -> None:
    schemas = document(app)["components"]["schemas"]
    for model in models_of(app):
        for example in schemas[model.__name__]["examples"]:
            model.model_validate_json(json.dumps(example))


def test_groups_without_a_route_are_left_out(tmp_path: Path, metrics: Metrics) -> None:

    engine = fake_model.make_engine(tmp_path, metrics, fake_model.FakeRuntime())
    whole = document(create_app({"sentiment": engine}, Settings(), metrics))
    assert [tag["name"] for tag in whole["tags"]] == ["Sentiment", "Explanations", "Operations"]
