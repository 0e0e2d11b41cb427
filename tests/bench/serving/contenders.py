"""Who is measured, how each is started and asked, and with which settings: the one list of them.

All serve the same bundle on all cores of the machine. A peer is a script in `peers`, as simple as its users would write
it; what is said of its settings here goes into the report. Knows no workload.
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
    """What a contender's labels are compared with before it is measured."""

    CALIBRATED = "the bundle's calibrated prediction"
    PLAIN = "the largest logit"
    OTHER = "nothing: its answers are of another kind"


@dataclass(frozen=True, slots=True)
class Machine:
    """What the placeholders in a command and in an environment stand for."""

    bundle: Path
    environments: Path  # folder of the virtual environments that have the peers' libraries
    port: int
    cores: int


def _inputs(texts: Sequence[str]) -> object:
    return {"inputs": texts[0] if len(texts) == 1 else list(texts)}


def _list_of_inputs(texts: Sequence[str]) -> object:
    return {"inputs": list(texts)}


def _labels(answer: Any) -> list[str]:
    return [one["label"] for one in answer]


def _heed_labels(answer: Any) -> list[str]:
    return _labels(answer["results"])


def _tensor(texts: Sequence[str]) -> object:
    """As the Open Inference Protocol has it."""
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
    deadline_header: str = ""  # by which a caller of an open loop can say, in milliseconds, how long it will wait
    ready: str = ""  # path that answers 200 when it is up; without one, the first good answer tells
    libraries: str = ""  # the environment that has them; this one if empty
    packages: tuple[str, ...] = ()  # whose versions are reported
    environment: Mapping[str, str] = field(default_factory=dict)
    usual: bool = True  # measured when nobody names contenders

    def python(self, environments: Path) -> Path:
        return environments / self.libraries / "bin" / "python" if self.libraries else Path(sys.executable)

    def command_on(self, machine: Machine) -> list[str]:
        places = {
            "python": self.python(machine.environments),
            "port": machine.port,
            "bundle": machine.bundle,
            "cores": machine.cores,
        }
        return [part.format(**places) for part in self.command]

    def environment_on(self, machine: Machine) -> dict[str, str]:
        """The tokenizer's own threads are off everywhere: cores are shared out by processes."""
        common = {"BUNDLE": str(machine.bundle), "PORT": str(machine.port), "CORES": str(machine.cores)}
        own = {name: value.format(cores=machine.cores) for name, value in self.environment.items()}
        return {**common, "TOKENIZERS_PARALLELISM": "false", **own}


_UVICORN = ("{python}", "-m", "uvicorn", "--host", "127.0.0.1", "--port", "{port}", "--no-access-log")

LIMIT = Contender(
    "limit",
    "Limit: ONNX Runtime, no server",
    Kind.LIMIT,
    "one process per core, one thread each; tokenised beforehand, grouped by length, best batch size of those tried",
    packages=("onnxruntime",),
)
INLINE = Contender(
    "heed",
    "Heed inline",
    Kind.HEED,
    "`heed serve` with its defaults, replicas = cores; arrivals say how long they wait (X-Request-Timeout-Ms)",
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
    settings="`heed serve` with gateways = cores, and as many replicas of the model from the start; the same header",
    # A replica that is added in mid-turn would make two rates one.
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
    settings="`heed serve` with its defaults, asked at /v1/intent: a model of the same shape, and a head after it",
    path="/v1/intent",
    answers=Answers.OTHER,
    labels=lambda answer: [str(one["intent"]) for one in answer["results"]],
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
    "all else as it comes, its access log too",
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
    # Its own libpython does not fit the standard library of every 3.11, and its shared memory fails on that.
    environment={"PYTRITON_NO_TENSORSTORE": "1"},
)
MLSERVER = Contender(
    "mlserver",
    "MLServer",
    Kind.BATCHING,
    "parallel workers = cores, one thread each; adaptive batching, at most 16 requests, 5 ms wait",
    ("{python}", "mlserver_batching.py"),
    path="/v2/models/sentiment/infer",
    body=_tensor,
    labels=_tensor_labels,
    libraries="bench-older",
    packages=("mlserver",),
    ready="/v2/models/sentiment/ready",
)

CONTENDERS = (
    *(LIMIT, INLINE, REMOTE, ON_GPU, INTENTS),
    *(HANDMADE, LITSERVE, BENTOML, RAY_SERVE, PIPELINE, TRITON, MLSERVER),
)

ABSENT = (("Infinity", "it serves folders in the transformers layout only, and a bundle's graph has other inputs"),)
