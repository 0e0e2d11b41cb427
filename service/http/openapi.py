"""The OpenAPI document: entries of routes, groups, and the schemas that FastAPI cannot see."""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.schemas.wire import ProblemBody

SCHEMA = "#/components/schemas/{model}"

_PROBLEM = "Problem"
_PROBLEM_RESPONSE = {
    "description": "A problem (RFC 9457). Branch on its `code`. 429 and 503 come with `Retry-After`, in seconds.",
    "content": {"application/problem+json": {"schema": {"$ref": SCHEMA.format(model=ProblemBody.__name__)}}},
}


@dataclass(frozen=True, slots=True)
class Operation:
    """The entry of a route. Its description is the docstring of the endpoint.

    `operation_id` becomes the name of a method in generated clients, so it is stable.
    `problems` are the statuses of problems, and `parameters` describe the path.
    """

    operation_id: str
    tag: str
    summary: str
    problems: tuple[int, ...] = ()
    parameters: tuple[Mapping[str, Any], ...] = ()

    def options(self) -> dict[str, Any]:
        """Return the arguments for a route of FastAPI."""
        return {
            "operation_id": self.operation_id,
            "tags": [self.tag],
            "summary": self.summary,
            "responses": _problem_responses(self.problems),
            "openapi_extra": {"parameters": [dict(parameter) for parameter in self.parameters]},
        }


def path_parameter(name: str, description: str) -> dict[str, Any]:
    """Describe a part of a path."""
    return {"name": name, "in": "path", "required": True, "description": description, "schema": {"type": "string"}}


def _problem_responses(statuses: tuple[int, ...]) -> dict[int, dict[str, Any]]:
    """Refer to the response that all problems share; the description beside the reference overrides its description."""
    reference = f"#/components/responses/{_PROBLEM}"
    return {status: {"$ref": reference, "description": HTTPStatus(status).phrase} for status in sorted(statuses)}


def request_models(app: FastAPI) -> list[type[BaseModel]]:
    """Return the models of request bodies that hot routes parse themselves, in the order of their routes."""
    if not hasattr(app.state, "request_models"):
        app.state.request_models = []
    models: list[type[BaseModel]] = app.state.request_models
    return models


def document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, with the bodies of hot routes, with problems, and with the groups in use."""
    if app.openapi_schema is None:
        result = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        bodies = [(model, "validation") for model in request_models(app)]
        _, unseen = models_json_schema([*bodies, (ProblemBody, "serialization")], ref_template=SCHEMA)  # type: ignore[list-item]
        schemas = result["components"]["schemas"]
        schemas |= unseen["$defs"]
        # FastAPI drops the nulls of examples, which the schemas require.
        for model in (*request_models(app), *_response_models(app)):
            if examples := _examples_of(model):
                schemas[model.__name__]["examples"] = examples
        result["components"]["responses"] = {_PROBLEM: _PROBLEM_RESPONSE}
        used = {tag for path in result["paths"].values() for entry in path.values() for tag in entry["tags"]}
        result["tags"] = [tag for tag in app.openapi_tags or () if tag["name"] in used]
        app.openapi_schema = result
    return app.openapi_schema


def _response_models(app: FastAPI) -> list[type[BaseModel]]:
    models = [getattr(route, "response_model", None) for route in app.routes]
    return [model for model in models if isinstance(model, type) and issubclass(model, BaseModel)]


def _examples_of(model: type[BaseModel]) -> list[Any]:
    extra: Any = model.model_config.get("json_schema_extra")
    return list(extra.get("examples", ())) if isinstance(extra, dict) else []


def package_version() -> str:
    """Return the version of the installed package, "0" without one."""
    try:
        return version("heed")
    except PackageNotFoundError:
        return "0"
