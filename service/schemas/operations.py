"""The wire of /v1/models, /healthz and /readyz."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from service.schemas.wire import WireModel


class ModelLimits(WireModel):
    max_tokens: int
    max_inputs: int
    max_body_bytes: int


class MetricInfo(WireModel):
    dataset: str
    language: str
    name: str
    value: float
    command: str


class ModelInfo(WireModel):
    name: str
    version: str
    task: str
    labels: list[str]
    label_sets: Annotated[dict[str, list[str]], Field(description="intents by label set, of a model of intents")]
    reply_sets: list[str]
    languages: list[str]
    digest: Annotated[str, Field(description="sha256 of the bundle's manifest")]
    base: str
    limits: ModelLimits
    metrics: list[MetricInfo]


class ModelList(WireModel):
    models: list[ModelInfo]


class Health(WireModel):
    status: Literal["ok"]
