"""The OpenAPI document."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.http.responses import SCHEMA
from service.schemas.wire import ProblemBody


def request_models(app: FastAPI) -> list[type[BaseModel]]:
    """Return the models of request bodies that hot routes parse themselves, in the order of their routes."""
    if not hasattr(app.state, "request_models"):
        app.state.request_models = []
    found: list[type[BaseModel]] = app.state.request_models
    return found


def document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document with the schemas that FastAPI cannot see: bodies of hot routes and problems."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        bodies = [(model, "validation") for model in request_models(app)]
        _, unseen = models_json_schema([*bodies, (ProblemBody, "serialization")], ref_template=SCHEMA)  # type: ignore[list-item]
        found["components"]["schemas"] |= unseen["$defs"]
        app.openapi_schema = found
    return app.openapi_schema


def package_version() -> str:
    """Return the version of the installed package, "0" without one."""
    try:
        return version("heed")
    except PackageNotFoundError:
        return "0"
