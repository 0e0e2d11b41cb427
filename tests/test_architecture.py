"""Who may import whom: what keeps a model free of the service, and the service testable without Ray."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODELS = sorted((ROOT / "models").rglob("*.py"))
SERVICE = sorted((ROOT / "service").rglob("*.py"))
WITH_RAY = {"app.py", "remote.py"}


def imported(path: Path) -> Iterator[str]:
    """Top-level names of every import in a file, also of those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield (node.module or "").partition(".")[0]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODELS, ids=named)
def test_models_know_nothing_of_the_service(path: Path) -> None:
    assert not {"ray", "fastapi", "starlette", "uvicorn", "service"} & set(imported(path))


@pytest.mark.parametrize("path", SERVICE, ids=named)
def test_ray_stays_in_its_files(path: Path) -> None:
    if path.name not in WITH_RAY:
        assert "ray" not in set(imported(path))


@pytest.mark.parametrize("path", SERVICE, ids=named)
def test_serving_needs_no_training_library(path: Path) -> None:
    assert not {"torch", "transformers", "sklearn", "onnx", "safetensors"} & set(imported(path))


@pytest.mark.parametrize("name", ["explainer", "gradients", "attention_maps"])
def test_explaining_needs_no_training_library(name: str) -> None:
    training = "{'torch', 'onnx', 'sklearn', 'matplotlib'}"
    code = f"import sys, models.explain.{name}; sys.exit(bool({training} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    "name", ["batching.py", "call.py", "engine.py", "explaining.py", "predictor.py", "remote.py", "settings.py"]
)
def test_the_engine_knows_nothing_of_http(name: str) -> None:
    assert not {"fastapi", "starlette", "uvicorn"} & set(imported(ROOT / "service" / name))


def test_only_the_settings_read_the_environment() -> None:
    """But for the process tree, which passes its environment on, and HAProxy's launcher, which has no other input."""
    readers = {path.name for path in SERVICE if "os.environ" in path.read_text() or "os.getenv" in path.read_text()}
    assert readers <= {"cluster.py", "haproxy.py", "metrics.py"}


@pytest.mark.parametrize("name", ["gateway.py", "remote.py"])
def test_a_gateway_knows_a_model_only_as_a_predictor(name: str) -> None:
    assert not re.search(r"\b(Engine|Batcher|OnnxRuntime|Tokenizer)\b", (ROOT / "service" / name).read_text())


def test_what_gateways_import_loads_no_runtime() -> None:
    code = "import sys, service.app; sys.exit('onnxruntime' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_deployments_are_in_one_file() -> None:
    assert [path.name for path in SERVICE if "serve.deployment(" in path.read_text()] == ["app.py"]


@pytest.mark.parametrize("name", ["models", "service"])
def test_the_names_mean_this_repository(name: str) -> None:
    file = import_module(name).__file__
    assert file is not None
    assert Path(file).parent == ROOT / name
