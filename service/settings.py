"""The settings of an operator, read once.

This is the only module that reads the environment: `HEED_PORT=9000` sets `port`. It knows names, defaults and ranges,
but not the use of the values. Limits of requests are in `schemas` and limits of a task in `models.tasks`, because they
do not depend on the deployment.
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
    """A setting has an unusable value. The message is one line that names its environment variable."""

    def __init__(self, name: str, value: object, reason: str) -> None:
        super().__init__(name, value, reason)
        self.name = name

    def __str__(self) -> str:
        name, value, reason = self.args
        return f"{_PREFIX}{name.upper()}={value!r}: {reason}"

    def for_option(self, option: str) -> str:
        """Return the message for a value that came from this command-line option."""
        _, value, reason = self.args
        return f"{option} {value}: {reason}"


def _cores() -> int:
    """Return the cores that this process may use, from 1 to 4. More than four replicas must be set explicitly."""
    return max(1, min(4, len(os.sched_getaffinity(0))))


def _metrics_dir(validated: dict[str, Any]) -> Path:
    """Return a folder for this user and port, so that two services on one machine do not mix their metrics."""
    return Path(tempfile.gettempdir()) / f"heed-metrics-{os.getuid()}-{validated.get('port', 0)}"


def _gateway_requests(validated: dict[str, Any]) -> int:
    """Return four batches on a CPU: one that runs, one that is next, and two to choose texts of near lengths from.

    A GPU takes far larger batches, and a remote model gets all that waits in a gateway in one call.
    """
    inline_on_cpu = validated.get("device") == "cpu" and validated.get("placement") == "inline"
    return max(32, 4 * validated.get("batch_items", 0)) if inline_on_cpu else 1024


def _data_dir() -> Path:
    return Path.home() / ".local" / "share" / "heed"


def _bundle_field(task: str) -> Any:
    """Return the type and the default of the field `<task>_bundle`.

    Sentiment was the first task, and `HEED_BUNDLE` its variable. That name is still read.
    """
    name = f"{task}_bundle"
    variables = [f"{_PREFIX}{name.upper()}", *(["HEED_BUNDLE"] if task == "sentiment" else [])]
    field = Field(
        description=f"folder of the {task} model, or none to turn the task off",
        validation_alias=AliasChoices(name, *variables),
    )
    shipped = SHIPPED_BUNDLES[task]
    return Annotated[Path | None, field], shipped if shipped.is_dir() else None


# One bundle setting per task, so that a new task needs no edit here. Type checkers cannot see a created model.
if TYPE_CHECKING:
    _BundleSettings = BaseSettings
else:
    _BundleSettings = create_model(
        "_BundleSettings", __base__=BaseSettings, **{f"{task}_bundle": _bundle_field(task) for task in SHIPPED_BUNDLES}
    )


class Settings(_BundleSettings):
    """All settings. The environment variable of a field is `HEED_` and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="forbid")

    host: Annotated[str, Field(min_length=1, description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535, description="port to listen on")] = 8000
    label_set: Annotated[str, Field(min_length=1, description="label set of requests that name none")] = "banking77"
    data_dir: Annotated[Path | None, Field(description="folder of your team's heads, reply sets and catalogues")] = (
        Field(default_factory=_data_dir)
    )
    replicas: Annotated[
        int, Field(ge=1, le=256, description="gateways; with inline placement, each holds a copy of the models")
    ] = Field(default_factory=_cores)
    threads: Annotated[int, Field(ge=1, le=256, description="threads of the runtime in each replica")] = 1
    device: Annotated[Literal["cpu", "cuda"], Field(description="device that the models run on")] = "cpu"
    placement: Annotated[
        Literal["inline", "remote"], Field(description="models inside each gateway, or in separate replicas")
    ] = "inline"
    model_replicas_min: Annotated[
        int, Field(ge=1, le=256, description="minimum number of replicas of a remote model")
    ] = 1
    model_replicas_max: Annotated[
        int, Field(ge=1, le=256, validate_default=True, description="maximum number of replicas of a remote model")
    ] = 3
    model_cpus: Annotated[float, Field(ge=0, le=256, description="cores reserved for each remote replica")] = 1
    model_gpus: Annotated[
        float, Field(gt=0, le=16, description="GPUs reserved for each remote replica: a fraction of one, or whole GPUs")
    ] = 1
    model_resource: Annotated[str, Field(description="Ray resource of the nodes that run remote replicas")] = ""
    max_body_bytes: Annotated[int, Field(ge=1024, le=2**28, description="largest request body")] = 2 * 1024 * 1024
    max_bodies_bytes: Annotated[
        int, Field(ge=2**20, le=2**40, description="bytes of bodies on their way to one gateway; more get 429")
    ] = 64 * 2**20
    max_client_bodies_bytes: Annotated[
        int, Field(ge=1024, le=2**40, description="bytes of these bodies from one address; more get 429")
    ] = 32 * 2**20
    request_timeout_s: Annotated[
        float, Field(gt=0, le=3600, description="seconds after which a request is answered 504")
    ] = 10
    max_catalogue_items: Annotated[
        int, Field(ge=1, le=100_000_000, description="items that edits may give a catalogue; more get 413")
    ] = 1_000_000
    max_catalogue_bytes: Annotated[
        int,
        Field(ge=2**20, le=2**44, description="bytes of texts, attributes and vectors in a catalogue; more get 413"),
    ] = 4 * 2**30
    queue_tokens: Annotated[int, Field(ge=512, description="tokens that may wait in one replica; more get 429")] = (
        65_536
    )
    batch_tokens: Annotated[int, Field(ge=1, description="padded tokens in a batch of several texts")] = 160
    batch_items: Annotated[int, Field(ge=1, le=1024, description="texts in one batch")] = 8
    gateway_requests: Annotated[
        int, Field(ge=1, le=65_536, description="requests for texts that one gateway works on at once; more wait")
    ] = Field(default_factory=_gateway_requests)
    gateway_queue_s: Annotated[
        float, Field(ge=0.05, le=60, description="seconds that a request may wait for a gateway; more get 429")
    ] = 0.5
    stop_delay_s: Annotated[
        float, Field(ge=0, le=3600, description="seconds of a stop in which /readyz says no and requests are answered")
    ] = 0
    cache_entries: Annotated[int, Field(ge=0, le=10_000_000, description="answers cached for repeated texts")] = 0
    metrics_dir: Annotated[Path, Field(description="folder in which the replicas of a node combine their metrics")] = (
        Field(default_factory=_metrics_dir)
    )
    dashboard: Annotated[bool, Field(description="also start Ray's dashboard, its autoscaler and their agents")] = False
    same_machine: Annotated[bool, Field(description="HAProxy and all gateways share one machine and clock")] = False
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="lowest level that is logged")
    ] = "info"
    log_format: Annotated[
        Literal["console", "json"], Field(description="records for a reader, or as one JSON object per line")
    ] = "console"
    access_log: Annotated[bool, Field(description="also log one record per request")] = True

    @property
    def bundles(self) -> dict[str, Path]:
        """The folders of the served models, by task."""
        paths = {task: getattr(self, f"{task}_bundle") for task in SHIPPED_BUNDLES}
        return {task: path for task, path in paths.items() if path is not None}

    @property
    def to_measure(self) -> set[str]:
        """The batch settings that are unset on a GPU, where the defaults for a CPU would be slow."""
        return {"batch_tokens", "batch_items"} - self.model_fields_set if self.device == "cuda" else set()

    @field_validator(*(f"{task}_bundle" for task in SHIPPED_BUNDLES), "data_dir", mode="before")
    @classmethod
    def _none_when_empty(cls, value: object) -> object:
        return None if isinstance(value, str) and value.lower() in ("", "none") else value

    @model_validator(mode="after")
    def _serves_something(self) -> Settings:
        if not self.bundles:
            raise ValueError("at least one task needs a model; set one of the HEED_..._BUNDLE variables")
        return self

    @field_validator("model_replicas_max")
    @classmethod
    def _not_below_the_minimum(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("model_replicas_min", 1):
            raise ValueError("it should be at least HEED_MODEL_REPLICAS_MIN")
        return value

    @field_validator("model_gpus")
    @classmethod
    def _whole_or_a_fraction(cls, value: float) -> float:
        if value > 1 and not value.is_integer():
            raise ValueError("Ray reserves a fraction of one GPU or whole GPUs")
        return value


_RENAMED = {"SHELF": "DATA_DIR", "LABELS": "LABEL_SET"}
"""Present names of variables by their earlier names. Ignored, an earlier name would silently hide a team's data."""


def load_settings(**overrides: object) -> Settings:
    """Return the settings from the environment, with the overrides that are not None. Raises SettingsError."""
    for earlier, present in _RENAMED.items():
        if (value := os.environ.get(_PREFIX + earlier)) is not None:
            raise SettingsError(earlier, value, f"this variable is called {_PREFIX}{present} now; rename it")
    values = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**values)  # type: ignore[arg-type]
    except RuntimeError:
        raise SettingsError("data_dir", "", "this user has no home folder; name a folder, or none") from None
    except ValidationError as error:
        raise _settings_error(error) from None


def _settings_error(error: ValidationError) -> SettingsError:
    """Return the first fault. A fault without a location means that no model is set, and names sentiment's."""
    fault = error.errors(include_url=False)[0]
    location, value = (fault["loc"], fault["input"]) if fault["loc"] else (("sentiment_bundle",), "none")
    name = "_".join(str(key) for key in location).lower().removeprefix(_PREFIX.lower())
    return SettingsError(name, value, fault["msg"])
