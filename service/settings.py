"""What an operator can set, read once.

This is the only module that reads the environment (`HEED_PORT=9000` sets `port`). It knows names, defaults and
ranges; it does not know what the values are used for. Limits of the wire live in `schemas`, limits of a task in
`models.tasks`: neither is a matter of deployment.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.bundle import SHIPPED_BUNDLES

_PREFIX = "HEED_"


class SettingsError(Exception):
    """A setting that cannot be used; the message is one line that names it as a variable of the environment."""

    def __init__(self, name: str, value: object, reason: str) -> None:
        super().__init__(name, value, reason)
        self.name = name

    def __str__(self) -> str:
        name, value, reason = self.args
        return f"{_PREFIX}{name.upper()}={value!r}: {reason}"

    def of_option(self, option: str) -> str:
        """Return the message for a value that came from this option of a command."""
        _, value, reason = self.args
        return f"{option} {value}: {reason}"


def _cores() -> int:
    """Cores that this process may use, between 1 and 4: one replica each, more only by choice."""
    return max(1, min(4, len(os.sched_getaffinity(0))))


def _metrics_dir(earlier: dict[str, Any]) -> Path:
    """One folder per user and port, so that two services on one machine never add up."""
    return Path(tempfile.gettempdir()) / f"heed-metrics-{os.getuid()}-{earlier.get('port', 0)}"


def _data_dir() -> Path:
    return Path.home() / ".local" / "share" / "heed"


def _bundle_field(task: str) -> Any:
    """A setting `<task>_bundle`; sentiment's was `HEED_BUNDLE` while it was the only one, and that is read still."""
    names = [f"{task}_bundle", f"{_PREFIX}{task.upper()}_BUNDLE", *(["HEED_BUNDLE"] if task == "sentiment" else [])]
    description = f"folder of the {task} model; none serves no {task}"
    field = Field(description=description, validation_alias=AliasChoices(*names))
    shipped = SHIPPED_BUNDLES[task]
    return Annotated[Path | None, field], shipped if shipped.is_dir() else None


if TYPE_CHECKING:
    _TaskBundles = BaseSettings
else:
    _TaskBundles = create_model(
        "_TaskBundles", __base__=BaseSettings, **{f"{task}_bundle": _bundle_field(task) for task in SHIPPED_BUNDLES}
    )


class Settings(_TaskBundles):
    """Every field is the environment variable `HEED_` + its name in capitals."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="forbid")

    host: Annotated[str, Field(min_length=1, description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535, description="port to listen on")] = 8000
    label_set: Annotated[str, Field(min_length=1, description="intents that are meant when a request names none")] = (
        "banking77"
    )
    data_dir: Annotated[Path | None, Field(description="folder of a team's own heads, reply sets and catalogues")] = (
        Field(default_factory=_data_dir)
    )
    replicas: Annotated[int, Field(ge=1, le=256, description="gateways; inline, each has a copy of the model")] = Field(
        default_factory=_cores
    )
    threads: Annotated[int, Field(ge=1, le=256, description="threads of the runtime in each replica")] = 1
    device: Annotated[Literal["cpu", "cuda"], Field(description="where the model runs")] = "cpu"
    placement: Annotated[
        Literal["inline", "remote"], Field(description="the model in each gateway, or in replicas of its own")
    ] = "inline"
    model_replicas_min: Annotated[int, Field(ge=1, le=256, description="fewest replicas of a remote model")] = 1
    model_replicas_max: Annotated[
        int, Field(ge=1, le=256, validate_default=True, description="most replicas of a remote model")
    ] = 3
    model_cpus: Annotated[float, Field(ge=0, le=256, description="cores that each remote replica asks for")] = 1
    model_gpus: Annotated[
        float, Field(gt=0, le=16, description="GPUs that each remote replica asks for: a part of one, or whole ones")
    ] = 1
    model_resource: Annotated[str, Field(description="Ray resource that nodes for remote replicas offer")] = ""
    max_body_bytes: Annotated[int, Field(ge=1024, le=2**28, description="largest request body")] = 2 * 1024 * 1024
    request_timeout_s: Annotated[float, Field(gt=0, le=3600, description="after which a request is answered 504")] = 10
    queue_tokens: Annotated[int, Field(ge=512, description="tokens that may wait in one replica, then 429")] = 65_536
    batch_tokens: Annotated[int, Field(ge=1, description="padded tokens in a batch of several texts")] = 160
    batch_items: Annotated[int, Field(ge=1, le=1024, description="texts in one batch")] = 8
    cache_entries: Annotated[int, Field(ge=0, le=10_000_000, description="answers kept for texts that come again")] = 0
    metrics_dir: Annotated[Path, Field(description="folder through which the replicas of a node add up metrics")] = (
        Field(default_factory=_metrics_dir)
    )
    dashboard: Annotated[bool, Field(description="start Ray's dashboard, autoscaler and their agents too")] = False
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="least severe event that is logged")
    ] = "info"

    @property
    def bundles(self) -> dict[str, Path]:
        """Folders by task, of the tasks that are served."""
        chosen = {task: getattr(self, f"{task}_bundle") for task in SHIPPED_BUNDLES}
        return {task: path for task, path in chosen.items() if path is not None}

    @property
    def to_measure(self) -> set[str]:
        """The settings of a batch that nobody has made, on a GPU, where the defaults of a CPU would be slow."""
        return {"batch_tokens", "batch_items"} - self.model_fields_set if self.device == "cuda" else set()

    @field_validator(*(f"{task}_bundle" for task in SHIPPED_BUNDLES), "data_dir", mode="before")
    @classmethod
    def _none_when_empty(cls, value: object) -> object:
        return None if isinstance(value, str) and value.lower() in ("", "none") else value

    @model_validator(mode="after")
    def _serves_something(self) -> Settings:
        if not self.bundles:
            raise ValueError("at least one task needs a model")
        return self

    @field_validator("model_replicas_max")
    @classmethod
    def _not_below_the_fewest(cls, value: int, earlier: ValidationInfo) -> int:
        if value < earlier.data.get("model_replicas_min", 1):
            raise ValueError("fewer than HEED_MODEL_REPLICAS_MIN")
        return value

    @field_validator("model_gpus")
    @classmethod
    def _whole_or_less_than_one(cls, value: float) -> float:
        if value > 1 and not value.is_integer():
            raise ValueError("Ray takes a part of one GPU or whole ones")
        return value


def load_settings(**given: object) -> Settings:
    """Settings from the environment, overridden by what is given and not None; raises SettingsError."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = (
            "_".join(str(part) for part in first["loc"] or ["sentiment_bundle"]).lower().removeprefix(_PREFIX.lower())
        )
        raise SettingsError(name, first["input"] if first["loc"] else "none", first["msg"]) from None
