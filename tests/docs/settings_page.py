"""`docs/settings.md`, written from the fields of `Settings`."""

from __future__ import annotations

from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import AliasChoices
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from service.settings import Settings
from tests.docs.table import table

PREFIX = "HEED_"

# A field that is missing here is listed under "More".
GROUPS = {
    "Address": ("host", "port"),
    "Models and data": (
        "sentiment_bundle",
        "intent_bundle",
        "recommend_bundle",
        "label_set",
        "data_dir",
    ),
    "Processes": ("replicas", "threads", "device", "placement"),
    "Remote models": (
        "model_replicas_min",
        "model_replicas_max",
        "model_cpus",
        "model_gpus",
        "model_resource",
    ),
    "Limits": (
        "max_body_bytes",
        "max_bodies_bytes",
        "max_client_bodies_bytes",
        "request_timeout_s",
        "gateway_requests",
        "gateway_queue_s",
        "stop_delay_s",
        "queue_tokens",
        "max_catalogue_items",
        "max_catalogue_bytes",
    ),
    "Batches and cache": ("batch_tokens", "batch_items", "cache_entries"),
    "Operation": ("metrics_dir", "dashboard", "same_machine", "log_level", "log_format", "access_log"),
}

# Defaults that depend on the machine or the installation.
COMPUTED_DEFAULTS = {
    "sentiment_bundle": "the shipped model",
    "intent_bundle": "the shipped model",
    "recommend_bundle": "the shipped model",
    "data_dir": "`~/.local/share/heed`",
    "replicas": "one per core, at most 4",
    "gateway_requests": "32; 1024 on `cuda` and with remote models",
    "metrics_dir": "a temporary folder",
}

_WORDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}

# What a description is too short for.
NOTES = {
    "batch_tokens": "On `cuda` the default is measured at the start.",
    "batch_items": "On `cuda` the default is measured at the start.",
    "data_dir": "See [catalogues](catalogues.md) and [intents](intents.md).",
    "device": "`cuda` needs the extra `gpu`. See [deployment](deployment.md).",
    "gateway_requests": "On a CPU it is at least four times `HEED_BATCH_ITEMS`. See [tuning](tuning.md#overload).",
    "log_level": "See [logs](logs.md).",
    "metrics_dir": "`heed serve` makes a folder of its own.",
    "same_machine": "`heed serve` sets it.",
    "placement": "See [deployment](deployment.md).",
}

_HEADER = """\
<!-- Written by `make docs` from service/settings.py. Do not edit. -->

# Settings

Every setting is an environment variable that the service reads once, when it starts.

```console
HEED_PORT=9000 HEED_REPLICAS=2 .venv/serve/bin/heed serve
```

- `heed serve` also takes `--host`, `--port`, `--bundle` and `--replicas`. An option wins over its variable.
- A value that cannot be used stops the start. The message is one line that names the variable.
- `serve deploy` takes the same settings as `args` in a YAML file, in lower case and without `HEED_`. See
  [deployment](deployment.md).
- `heed tune` prints values for the machine it runs on. See [tuning](tuning.md).
- The limits of requests are fixed. See the [API](api.md#limits).
"""

_FOOTER = """\
## Beside these

| variable | effect |
|---|---|
| `HEED_HAPROXY_BINARY` | path of another HAProxy than the one that comes with Ray |
"""


def render() -> str:
    """Return the page."""
    grouped = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, "More": tuple(name for name in Settings.model_fields if name not in grouped)}
    sections = [section for title, names in groups.items() if (section := _section(title, names))]
    return "\n".join([_HEADER, *sections, _FOOTER])


def variables_of(name: str) -> list[str]:
    """Return the environment variables that set a field, the preferred one first."""
    alias = Settings.model_fields[name].validation_alias
    if isinstance(alias, str):
        return [alias.upper()]
    if isinstance(alias, AliasChoices):
        names = dict.fromkeys(choice.upper() for choice in alias.choices if isinstance(choice, str))
        return [choice for choice in names if choice.startswith(PREFIX)] or [PREFIX + name.upper()]
    return [PREFIX + name.upper()]


def _section(title: str, names: tuple[str, ...]) -> str:
    rows = [_row(name, Settings.model_fields[name]) for name in names if name in Settings.model_fields]
    if not rows:
        return ""
    return f"## {title}\n\n{table(('variable', 'default', 'range', 'effect'), rows)}"


def _row(name: str, field: FieldInfo) -> tuple[str, ...]:
    variable, *others = variables_of(name)
    effect = field.description or ""
    if others:
        effect += f" ({', '.join(f'`{other}`' for other in others)} is also read)"
    if name in NOTES:
        effect += f". {NOTES[name]}"
    return f"`{variable}`", _default(name, field), _range(field), effect


def _default(name: str, field: FieldInfo) -> str:
    if name in COMPUTED_DEFAULTS:
        return COMPUTED_DEFAULTS[name]
    if field.default_factory is not None or field.default is PydanticUndefined or isinstance(field.default, Path):
        raise ValueError(f"say what the default of {name} is, in COMPUTED_DEFAULTS")
    return "none" if field.default in ("", None) else f"`{_shown(field.default).replace(',', '')}`"


def _range(field: FieldInfo) -> str:
    kind, optional = _without_none(field.annotation)
    if get_origin(kind) is Literal:
        allowed = ", ".join(f"`{choice}`" for choice in get_args(kind))
    elif kind is bool:
        allowed = "`true`, `false`"
    elif kind is Path:
        allowed = "a path"
    elif kind is str:
        allowed = "text"
    else:
        allowed = _bounds(field)
    return f"{allowed}, or `none`" if optional else allowed


def _bounds(field: FieldInfo) -> str:
    bounds = {
        rule: _shown(getattr(metadata, rule))
        for metadata in field.metadata
        for rule in _WORDS
        if hasattr(metadata, rule)
    }
    if bounds.keys() == {"ge", "le"}:
        return f"{bounds['ge']} to {bounds['le']}"
    return ", ".join(f"{_WORDS[rule]} {bound}" for rule, bound in bounds.items())


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:,}" if float(value).is_integer() else f"{value:g}"
    return str(value)


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
        return kinds[0], len(kinds) < len(get_args(annotation))
    return annotation, False
