"""Schemas of `/v1/models`, `/healthz` and `/readyz`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from service.schemas import examples
from service.schemas.wire import WireModel


class ModelLimits(WireModel):
    """Limits of requests to a model."""

    max_tokens: int
    max_inputs: int
    max_body_bytes: int


class MetricInfo(WireModel):
    """A quality figure of a model, with the command that measures it."""

    dataset: str
    language: str
    name: str
    value: float
    command: str


class ModelInfo(WireModel):
    """A served model."""

    name: str
    version: str
    task: str
    labels: list[str]
    label_sets: Annotated[dict[str, list[str]], Field(description="intents by the name of their label set")]
    reply_sets: list[str]
    languages: list[str]
    digest: Annotated[str, Field(description="sha256 of the bundle's manifest")]
    base: str
    limits: ModelLimits
    metrics: list[MetricInfo]


class ModelList(WireModel):
    """The served models."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.MODELS]})

    models: list[ModelInfo]


class Health(WireModel):
    """The state of the service: a problem replaces it unless the state is good."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.HEALTH]})

    status: Literal["ok"]
