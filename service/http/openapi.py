"""The OpenAPI document."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from service.http.responses import SCHEMA
from service.schemas.catalogue import CatalogueEdit
from service.schemas.explain import ExplainIntentRequest, ExplainRepliesRequest, ExplainRequest
from service.schemas.explain_recommend import ExplainRecommendRequest
from service.schemas.intent import IntentRequest, RepliesRequest
from service.schemas.recommend import RecommendRequest
from service.schemas.sentiment import SentimentRequest
from service.schemas.wire import ProblemBody


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the schemas that FastAPI cannot see because bodies and problems are ours."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        _, unseen = models_json_schema(
            [
                (SentimentRequest, "validation"),
                (ExplainRequest, "validation"),
                (ExplainIntentRequest, "validation"),
                (ExplainRepliesRequest, "validation"),
                (IntentRequest, "validation"),
                (RepliesRequest, "validation"),
                (RecommendRequest, "validation"),
                (ExplainRecommendRequest, "validation"),
                (CatalogueEdit, "validation"),
                (ProblemBody, "serialization"),
            ],
            ref_template=SCHEMA,
        )
        document["components"]["schemas"] |= unseen["$defs"]
        app.openapi_schema = document
    return app.openapi_schema


def _version() -> str:
    try:
        return version("heed")
    except PackageNotFoundError:
        return "0"
