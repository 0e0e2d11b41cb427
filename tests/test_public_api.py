"""Public names and formats, compared with snapshots: the API, metrics, problem codes and settings.

A failure here means a change that users see. `docs/stability.md` says how public names change. To write new snapshots:

    HEED_WRITE_SNAPSHOTS=1 .venv/test/bin/python -m pytest tests/test_public_api.py

Sentences are not public. The snapshot of the OpenAPI document therefore has no titles, summaries, descriptions and
examples.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from service import errors
from service.http.openapi import document
from service.settings import Settings
from service.telemetry.batch_report import BatchReport
from service.telemetry.metrics import Metrics
from tests.docs import settings_page
from tests.support.whole_app import app_without_models

SNAPSHOTS = Path(__file__).parent / "snapshots"
WRITE = "HEED_WRITE_SNAPSHOTS"
SENTENCES = {"title", "summary", "description", "example", "examples"}
NAMES = {"properties", "schemas", "responses", "paths"}
"""Keys of objects whose keys are names of the API, and never sentences."""


def check(name: str, content: str) -> None:
    """Compare the content with its snapshot, or write the snapshot."""
    path = SNAPSHOTS / name
    if os.environ.get(WRITE):
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    assert content == path.read_text(encoding="utf-8"), f"{name}: a public name changed; see the docstring of this test"


def without_sentences(value: Any, are_names: bool = False) -> Any:
    if isinstance(value, dict):
        return {
            key: without_sentences(inner, key in NAMES)
            for key, inner in sorted(value.items())
            if are_names or key not in SENTENCES
        }
    return [without_sentences(inner) for inner in value] if isinstance(value, list) else value


def problems(kind: type[errors.Problem] = errors.Problem) -> Iterator[type[errors.Problem]]:
    yield kind
    for child in kind.__subclasses__():
        yield from problems(child)


def test_the_api(metrics: Metrics) -> None:
    whole = document(app_without_models(metrics))
    whole["info"]["version"] = "any"
    check("openapi.json", json.dumps(without_sentences(whole), indent=1, ensure_ascii=False) + "\n")


def test_names_and_labels_of_metrics(metrics: Metrics) -> None:
    metrics.record_request("/", 200, 0.1)
    metrics.set_bundle("task", "model", "1.0.0", "digest")
    metrics.calls("task").record_call(1, 0.1)
    metrics.count_proxy_refusals("4xx", 1)
    task = metrics.task("task")
    task.count_outcomes(["ok"])
    task.record_batch(BatchReport(queued_s=(0.1,), infer_s=0.1, tokens=1, padded_tokens=1))
    labels = {
        f"{family.name} ({family.type})": {label for sample in family.samples for label in sample.labels}
        for family in text_string_to_metric_families(metrics.render().decode())
    }
    lines = [f"{family}: {', '.join(sorted(names))}" for family, names in labels.items()]
    check("metrics.txt", "\n".join(sorted(lines)) + "\n")


def test_codes_and_statuses_of_problems() -> None:
    lines = {f"{kind.status} {kind.code}" for kind in problems()}
    check("problems.txt", "\n".join(sorted(lines)) + "\n")


def test_names_of_settings() -> None:
    names = [variable for field in Settings.model_fields for variable in settings_page.variables_of(field)]
    check("settings.txt", "\n".join(sorted(names)) + "\n")
