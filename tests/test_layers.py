"""Who may import whom: rooms import only lower rooms, and each library stays in its rooms."""

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
MODULES = sorted(path for package in ("models", "service") for path in (ROOT / package).rglob("*.py"))
MAX_FILES_OF_A_ROOM = 12
MAX_LINES_OF_A_FILE = 300

# From the top. Rooms of one line do not know each other.
LAYERS = (
    ("service.entry",),
    ("service.cli",),
    ("service.app",),
    ("service.start_checks",),
    ("service.api",),
    ("service.http",),
    ("service.registry", "service.explanation", "service.cluster", "service.tuning"),
    ("service.inference", "service.schemas"),
    ("service.telemetry", "service.fairness"),
    ("service.errors", "service.settings"),
    ("models.export",),
    ("models.recommender_training",),
    ("models.training",),
    ("models.networks", "models.evaluation", "models.behaviour"),
    ("models.augmentation",),
    ("models.explain", "models.data"),
    ("models.runtime", "models.ranking"),
    ("models.graph", "models.catalogue"),
    ("models.bundle",),
    ("models.prediction",),
    ("models.text",),
    ("models.tasks", "models.files", "models.names", "models.installation"),
)
LEVEL = {room: level for level, rooms in enumerate(reversed(LAYERS)) for room in rooms}

LIBRARIES = {
    "torch": {"models.networks", "models.training", "models.recommender_training", "models.export"},
    "transformers": {"models.networks"},
    "huggingface_hub": {"models.networks"},
    "onnx": {"models.graph", "models.export", "models.runtime"},
    "onnxruntime": {"models.runtime"},
    "tokenizers": {"models.text", "service.tuning"},
    "sklearn": {
        "models.prediction",
        "models.evaluation",
        "models.training",
        "models.recommender_training",
        "models.export",
    },
    "ray": {"service.app", "service.cluster"},
    "fastapi": {"service.api", "service.http", "service.app"},
    "starlette": {"service.api", "service.http", "service.app"},
    "uvicorn": set[str](),
    "pydantic": {"service.schemas", "service.http", "service.settings"},
    "pydantic_settings": {"service.settings"},
    "prometheus_client": {"service.telemetry"},
    "typer": {"service.cli"},
    "wandb": {"models.training"},
    "rich": {"service.cli", "models.training", "models.recommender_training"},
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str | None:
    return next((room for room in LEVEL if module == room or module.startswith(f"{room}.")), None)


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions and for type checking alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inner_imports(path: Path, modules: set[str]) -> set[str]:
    """Modules of this repository that a file imports: `from a.b import c` is `a.b.c` if that is one, else `a.b`."""
    names = (name if name in modules else name.rpartition(".")[0] for name in imported(path))
    return {name for name in names if name in modules}


def file_graph() -> dict[str, set[str]]:
    modules = {module_of(path) for path in MODULES}
    return {module_of(path): inner_imports(path, modules) - {module_of(path)} for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_a_module_imports_only_lower_rooms(path: Path) -> None:
    own = room_of(module_of(path))
    for name in imported(path):
        room = room_of(name)
        if room is not None and room != own:
            assert own is not None, f"{module_of(path)} is in no room"
            assert LEVEL[room] < LEVEL[own], f"{module_of(path)} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_a_library_stays_in_its_rooms(path: Path) -> None:
    for name in imported(path):
        library = name.partition(".")[0]
        if library in LIBRARIES:
            assert room_of(module_of(path)) in LIBRARIES[library], f"{module_of(path)} imports {name}"


def test_files_import_each_other_in_no_circle() -> None:
    graph = file_graph()
    done: set[str] = set()
    while ready := {module for module in graph.keys() - done if graph[module] <= done}:
        done |= ready
    assert not graph.keys() - done


def test_rooms_and_files_stay_small() -> None:
    rooms = {path.parent for path in MODULES} - {ROOT / "models", ROOT / "service"}
    for room in rooms:
        files = [path for path in room.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= MAX_FILES_OF_A_ROOM, f"{room.name} has {len(files)} files"
    for path in MODULES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MAX_LINES_OF_A_FILE, f"{module_of(path)} has {lines} lines"


@pytest.mark.parametrize("room", sorted({path.parent for path in MODULES}), ids=lambda room: room.name)
def test_a_room_says_its_purpose_and_imports_nothing(room: Path) -> None:
    """Three promises rest on it: gateways load no runtime, serving loads no torch, HAProxy's launcher loads little."""
    (statement,) = ast.parse((room / "__init__.py").read_text(encoding="utf-8")).body
    assert isinstance(statement, ast.Expr), f"{room} has more than a docstring"


@pytest.mark.parametrize("name", ["explainer", "gradients", "attention_maps"])
def test_explaining_loads_no_training_library(name: str) -> None:
    training = "{'torch', 'onnx', 'sklearn', 'matplotlib'}"
    code = f"import sys, models.explain.{name}; sys.exit(bool({training} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_gateways_load_no_runtime() -> None:
    code = "import sys, service.app; sys.exit('onnxruntime' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_engine_loads_no_http_library() -> None:
    code = "import sys, service.inference.engine; sys.exit(bool({'fastapi', 'starlette', 'ray'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_only_the_settings_read_the_environment() -> None:
    """But for the process tree, which passes its environment on, and HAProxy's launcher, which has no other input."""
    readers = {
        module_of(path)
        for path in MODULES
        if module_of(path).startswith("service.") and re.search(r"os\.(environ|getenv)", path.read_text("utf-8"))
    }
    assert readers <= {
        "service.settings",
        "service.cluster.local",
        "service.cluster.haproxy",
        "service.telemetry.metrics",
    }


@pytest.mark.parametrize("name", ["api/gateway.py", "cluster/remote.py"])
def test_a_gateway_knows_a_model_only_as_a_predictor(name: str) -> None:
    assert not re.search(r"\b(Engine|Batcher|OnnxRuntime|Tokenizer)\b", (ROOT / "service" / name).read_text("utf-8"))


def test_deployments_are_in_one_file() -> None:
    assert [module_of(path) for path in MODULES if "serve.deployment(" in path.read_text("utf-8")] == ["service.app"]


@pytest.mark.parametrize("name", ["models", "service"])
def test_the_names_mean_this_repository(name: str) -> None:
    file = import_module(name).__file__
    assert file is not None
    assert Path(file).parent == ROOT / name
