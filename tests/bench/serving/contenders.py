"""The list of contenders: their commands, requests and settings.

All serve the same bundle on all cores of the machine. A peer is a script in `peers`, as simple as its users would write
it. The settings described here go into the report. Independent of the workloads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from tests.support.local_service import COMMAND

PEERS = Path(__file__).parent / "peers"


class Kind(Enum):
    LIMIT = "limit"  # no server
    HEED = "heed"
    BATCHING = "serving system with its batching on"
    OTHER = "other"


class Answers(Enum):
    """The labels that a contender must return before it is measured."""

    CALIBRATED = "the bundle's calibrated prediction"
    PLAIN = "the largest logit"
    OTHER = "nothing: its answers have another form"


@dataclass(frozen=True, slots=True)
class Machine:
    """The values of the placeholders in commands and environments."""

    bundle: Path
    environments: Path  # folder of the peers' virtual environments
    port: int
    cores: int


def _inputs(texts: Sequence[str]) -> object:
    return {"inputs": texts[0] if len(texts) == 1 else list(texts)}


def _list_of_inputs(texts: Sequence[str]) -> object:
    return {"inputs": list(texts)}


def _labels(answer: Any) -> list[str]:
    return [result["label"] for result in answer]


def _heed_labels(answer: Any) -> list[str]:
    return _labels(answer["results"])


def _tensor(texts: Sequence[str]) -> object:
    """Return a body of the Open Inference Protocol."""
    return {"inputs": [{"name": "texts", "datatype": "BYTES", "shape": [len(texts), 1], "data": list(texts)}]}


def _tensor_labels(answer: Any) -> list[str]:
    return [label for tensor in answer["outputs"] if tensor["name"] == "label" for label in tensor["data"]]


@dataclass(frozen=True, slots=True)
class Contender:
    name: str
    title: str
    kind: Kind
    settings: str
    command: tuple[str, ...] = ()
    path: str = "/predict"
    body: Callable[[Sequence[str]], object] = _inputs
    answers: Answers = Answers.PLAIN
    labels: Callable[[Any], list[str]] = _labels
    deadline_header: str = ""  # carries the deadline of an open loop, in milliseconds
    ready: str = ""  # path that returns 200 once the server is up; if empty, the first good answer counts
    libraries: str = ""  # the virtual environment with its libraries; if empty, the current one
    packages: tuple[str, ...] = ()  # packages whose versions are reported
    environment: Mapping[str, str] = field(default_factory=dict)
    usual: bool = True  # whether it is measured by default

    def python(self, environments: Path) -> Path:
        return environments / self.libraries / "bin" / "python" if self.libraries else Path(sys.executable)

    def command_on(self, machine: Machine) -> list[str]:
        values = {
            "python": self.python(machine.environments),
            "port": machine.port,
            "bundle": machine.bundle,
            "cores": machine.cores,
        }
        return [argument.format(**values) for argument in self.command]

    def environment_on(self, machine: Machine) -> dict[str, str]:
        """Return the environment variables. Threads of the tokenizer are off, because every core has a process."""
        common = {"BUNDLE": str(machine.bundle), "PORT": str(machine.port), "CORES": str(machine.cores)}
        specific = {name: value.format(cores=machine.cores) for name, value in self.environment.items()}
        return {**common, "TOKENIZERS_PARALLELISM": "false", **specific}


_UVICORN = ("{python}", "-m", "uvicorn", "--host", "127.0.0.1", "--port", "{port}", "--no-access-log")

LIMIT = Contender(
    "limit",
    "Limit: ONNX Runtime, no server",
    Kind.LIMIT,
    "one process per core, one thread each; tokenised beforehand, grouped by length, best batch size",
    packages=("onnxruntime",),
)
INLINE = Contender(
    "heed",
    "Heed inline",
    Kind.HEED,
    "`heed serve` with its defaults, replicas = cores; open loops send their deadline (X-Request-Timeout-Ms)",
    (*COMMAND, "--port", "{port}", "--bundle", "{bundle}", "--replicas", "{cores}"),
    path="/v1/sentiment",
    answers=Answers.CALIBRATED,
    labels=_heed_labels,
    deadline_header="X-Request-Timeout-Ms",
    packages=("heed", "ray", "onnxruntime"),
)
REMOTE = replace(
    INLINE,
    name="heed-remote",
    title="Heed remote",
    settings="`heed serve` with gateways = cores, model replicas = cores from the start; the same header",
    # A replica added during a turn would mix two rates.
    environment={
        "HEED_PLACEMENT": "remote",
        "HEED_MODEL_REPLICAS_MIN": "{cores}",
        "HEED_MODEL_REPLICAS_MAX": "{cores}",
    },
)
ON_GPU = replace(
    INLINE,
    name="heed-gpu",
    title="Heed remote, on one GPU",
    settings="`heed serve` of sentiment, gateways = cores, four replicas of the model on the GPU; the same header",
    environment={
        "HEED_PLACEMENT": "remote",
        "HEED_DEVICE": "cuda",
        "HEED_MODEL_REPLICAS_MIN": "4",
        "HEED_MODEL_REPLICAS_MAX": "4",
        "HEED_MODEL_GPUS": "0.25",
        "HEED_INTENT_BUNDLE": "none",
        "HEED_RECOMMEND_BUNDLE": "none",
        "HEED_MODEL_CPUS": "0",
        "HEED_QUEUE_TOKENS": "1000000",
    },
    usual=False,
)
INTENTS = replace(
    INLINE,
    name="heed-intent",
    title="Heed inline, intents",
    settings="`heed serve` with its defaults, requests to /v1/intent: a model of the same shape, then a head",
    path="/v1/intent",
    answers=Answers.OTHER,
    labels=lambda answer: [str(result["intent"]) for result in answer["results"]],
)
HANDMADE = Contender(
    "handmade",
    "FastAPI by hand",
    Kind.OTHER,
    "uvicorn workers = cores, one ONNX Runtime thread each, no batching, model called in the event loop",
    (*_UVICORN, "--workers", "{cores}", "fastapi_alone:app"),
    libraries="bench",
    packages=("fastapi", "uvicorn", "onnxruntime"),
)
LITSERVE = Contender(
    "litserve",
    "LitServe",
    Kind.BATCHING,
    "workers per device = cores, one thread each; at most 16 requests a batch, 5 ms timeout; access log off",
    ("{python}", "litserve_batching.py"),
    libraries="bench",
    packages=("litserve",),
)
BENTOML = Contender(
    "bentoml",
    "BentoML",
    Kind.BATCHING,
    "workers = cores, one thread each; adaptive batching, at most 32 texts, 10 s maximal latency; access log off",
    ("{python}", "-m", "bentoml", "serve", "bentoml_batching:Sentiment", "--host", "127.0.0.1", "--port", "{port}"),
    body=_list_of_inputs,
    libraries="bench",
    packages=("bentoml",),
    environment={"BENTOML_DO_NOT_TRACK": "true"},
)
RAY_SERVE = Contender(
    "ray-serve",
    "Ray Serve, defaults",
    Kind.BATCHING,
    "replicas = cores, one thread each; `@serve.batch` of at most 16 requests, 5 ms wait; max_ongoing_requests 100, "
    "otherwise defaults, including its access log",
    ("{python}", "ray_batching.py"),
    libraries="bench",
    packages=("ray",),
    environment={"RAY_USAGE_STATS_ENABLED": "0"},
)
PIPELINE = Contender(
    "pipeline",
    "FastAPI + transformers",
    Kind.OTHER,
    "one uvicorn worker, torch's default threads, fp32; random weights in the bundle's architecture",
    (*_UVICORN, "fastapi_pipeline:app"),
    answers=Answers.OTHER,
    libraries="bench",
    packages=("transformers", "torch"),
)

TRITON = Contender(
    "triton",
    "Triton",
    Kind.BATCHING,
    "pytriton, instances = cores, one thread each; dynamic batching, at most 32 texts, 5 ms queue delay; tensors as "
    "base64 between its processes",
    ("{python}", "triton_batching.py"),
    path="/v2/models/sentiment/infer",
    body=_tensor,
    labels=_tensor_labels,
    libraries="bench-older",
    packages=("nvidia-pytriton",),
    ready="/v2/models/sentiment/ready",
    # Its libpython does not match the standard library of every 3.11, which breaks its shared memory.
    environment={"PYTRITON_NO_TENSORSTORE": "1"},
)
MLSERVER = replace(
    TRITON,
    name="mlserver",
    title="MLServer",
    settings="parallel workers = cores, one thread each; adaptive batching, at most 16 requests, 5 ms wait",
    command=("{python}", "mlserver_batching.py"),
    packages=("mlserver",),
    environment={},
)

CONTENDERS = (
    *(LIMIT, INLINE, REMOTE, ON_GPU, INTENTS),
    *(HANDMADE, LITSERVE, BENTOML, RAY_SERVE, PIPELINE, TRITON, MLSERVER),
)

ABSENT = (("Infinity", "it serves folders in the transformers layout only, and a bundle's graph has other inputs"),)
