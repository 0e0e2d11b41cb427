"""A model on disk: a folder whose `bundle.json` lists every file with its digest. Save, verify, load.

A bundle is refused as a whole, with one line that says why: nothing of it is opened before its digests hold.
Needs no torch and no network. Knows nothing of how a model was trained.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.prediction.calibration import Calibration, LogitScaling, find_scaling
from models.tasks import INTENT, RECOMMEND, SENTIMENT, TASKS, Task

FORMAT = 2
MANIFEST, GRAPH, EMBEDDINGS, TOKENIZER, CARD = (
    "bundle.json",
    "model.int8.onnx",
    "embeddings.data",
    "tokenizer.json",
    "CARD.md",
)
SHIPPED_BUNDLES = {task.name: Path(__file__).parent / "bundles" / task.folder for task in TASKS.values()}
"""The folders of the shipped bundles by task."""

SHIPPED = SHIPPED_BUNDLES[SENTIMENT.name]
SHIPPED_INTENT, SHIPPED_RECOMMEND = SHIPPED_BUNDLES[INTENT.name], SHIPPED_BUNDLES[RECOMMEND.name]
SUFFIXES = (".onnx", ".json", ".md", ".png", ".safetensors", ".data")
"""What a bundle may hold; anything else, pickled weights above all, is refused."""

DOCUMENT_SUFFIXES = (".md", ".png")
"""Of which is what is said of a model, and not the model."""

PICKLE_MAGIC = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
"""How pickles and the zip archives that torch keeps them in begin."""


class BundleError(Exception):
    """A bundle that must not be served; the message is one line for the person who starts the service."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured figure; `command` reproduces it."""

    dataset: str
    language: str
    name: str
    value: float
    command: str


@dataclass(frozen=True, slots=True)
class Source:
    """A data set that the model was trained on."""

    name: str
    language: str
    licence: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `bundle.json` says of the model; `base` and `base_digest` name the encoder it was fine-tuned from."""

    name: str
    version: str
    task: Task
    languages: tuple[str, ...]
    max_tokens: int
    base: str
    base_digest: str
    calibration: Calibration
    sources: tuple[Source, ...]
    metrics: tuple[Metric, ...]


@dataclass(frozen=True, slots=True)
class Bundle(Manifest):
    """A verified bundle; `digest` is the SHA-256 of its manifest, which holds those of all other files.

    `encoder` is that of its graph: what heads and reply sets made with its vectors are held to. `model` is one of
    all that computes, its files but for the card and its pictures: what catalogues are held to.
    """

    path: Path
    digest: str
    encoder_digest: str
    model_digest: str

    @property
    def graph(self) -> Path:
        return self.path / GRAPH

    @property
    def tokenizer(self) -> Path:
        return self.path / TOKENIZER

    def scaling(self, language: str, targeted: bool) -> LogitScaling:
        """A language that the bundle does not know is taken for its first."""
        return find_scaling(self.calibration, language if language in self.languages else self.languages[0], targeted)


def load_bundle(path: Path) -> Bundle:
    """Verify and read a bundle; raises BundleError when anything about it is not as its manifest says."""
    bundle, digests = _describe(path.resolve())
    verify_files(bundle.path, digests)
    verify_external_data(bundle.path, bundle.graph)
    return bundle


def load_unverified(path: Path) -> Bundle:
    """A bundle as its manifest says, for who names a model and never opens its files; raises BundleError."""
    return _describe(path.resolve())[0]


def _describe(path: Path) -> tuple[Bundle, dict[str, str]]:
    """The bundle, unverified, and the digests of its files by name."""
    if not (path / MANIFEST).is_file():
        raise BundleError(f"no bundle at {path}: there is no {MANIFEST}; give the folder of a bundle with --bundle")
    content = (path / MANIFEST).read_bytes()
    try:
        manifest = json.loads(content)
        if manifest["format"] != FORMAT:
            raise BundleError(
                f"bundle {path.name}: format {manifest['format']} is not {FORMAT}, the one this Heed reads"
            )
        bundle = read_manifest(path, manifest, hashlib.sha256(content).hexdigest())
        return bundle, {str(name): str(digest) for name, digest in manifest["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"bundle {path.name}: {MANIFEST} cannot be read ({error!r}); export it again") from error


def read_manifest(path: Path, manifest: dict[str, Any], digest: str) -> Bundle:
    task = TASKS.get(manifest["task"])
    if task is None:
        raise BundleError(f"bundle {path.name}: its task {manifest['task']!r} is none of {', '.join(TASKS)}")
    if tuple(manifest["labels"]) != task.labels:
        raise BundleError(
            f"bundle {path.name}: its labels {manifest['labels']} are not those of the task, {list(task.labels)}"
        )
    calibration = {
        language: LogitScaling(
            float(row["temperature"]), float(row["power"]), tuple(float(value) for value in row["bias"])
        )
        for language, row in manifest["calibration"].items()
    }
    languages = tuple(manifest["languages"])
    for question in (*languages, *calibration) if task.labels else ():
        if question not in calibration or len(calibration[question].bias) != len(task.labels):
            raise BundleError(f"bundle {path.name}: no calibration of {len(task.labels)} labels for {question}")
    return Bundle(
        path=path,
        digest=digest,
        encoder_digest=str(manifest["files"].get(GRAPH, "")),
        model_digest=model_digest(manifest["files"], int(manifest["max_tokens"])),
        name=str(manifest["name"]),
        version=str(manifest["version"]),
        task=task,
        languages=languages,
        max_tokens=int(manifest["max_tokens"]),
        base=str(manifest["base"]["name"]),
        base_digest=str(manifest["base"]["sha256"]),
        calibration=calibration,
        sources=tuple(Source(**row) for row in manifest["data"]),
        metrics=tuple(Metric(**row) for row in manifest["metrics"]),
    )


def model_digest(digests: dict[str, str], max_tokens: int) -> str:
    """Of the digests of a bundle's files by name."""
    computing = sorted(one for one in digests.items() if Path(one[0]).suffix not in DOCUMENT_SUFFIXES)
    return hashlib.sha256(json.dumps([max_tokens, computing]).encode()).hexdigest()


def verify_files(path: Path, digests: dict[str, str]) -> None:
    """Every file is listed, every listed file is there and unchanged, and none is of a kind that can run code."""
    for name in (GRAPH, TOKENIZER, CARD):
        if name not in digests:
            raise BundleError(f"bundle {path.name}: {MANIFEST} lists no {name}; export it again")
    present = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir()} - {MANIFEST}
    for name in sorted(present | set(digests)):
        if Path(name).suffix not in SUFFIXES:
            raise BundleError(f"bundle {path.name}: {name} is not a kind of file a bundle may hold; remove it")
        if name not in digests:
            raise BundleError(f"bundle {path.name}: {name} is not listed in {MANIFEST}; remove it or export again")
        file = path / name
        if not file.is_file() or file.is_symlink() or not file.resolve().is_relative_to(path):
            raise BundleError(f"bundle {path.name}: {name} is missing, or leads out of the folder; export it again")
        if file_digest(file) != digests[name]:
            raise BundleError(f"bundle {path.name}: {name} was changed (its SHA-256 differs); copy or export it again")
        with file.open("rb") as opened:
            start = opened.read(9)
            # A safetensors file begins with the length of its header, which may read like a pickle's first two bytes;
            # the zeros after them are no pickle's.
            if start.startswith(PICKLE_MAGIC) and start[2:] != b"\0\0\0\0\0\0{":
                raise BundleError(f"bundle {path.name}: {name} is a pickle under another name; a bundle holds none")


def verify_external_data(path: Path, graph: Path) -> None:
    """Data that the graph keeps in other files must be files of this very folder."""
    for location in external_locations(graph.read_bytes()):
        file = path / (location or "")
        inside = location and not Path(location).is_absolute() and file.resolve().is_relative_to(path)
        if not inside or not file.is_file() or file.stat().st_nlink > 1:
            raise BundleError(f"bundle {path.name}: {graph.name} takes data from {location!r}, outside the bundle")


def save_bundle(path: Path, manifest: Manifest) -> Bundle:
    """Write the manifest of a folder that holds all other files, and return the bundle as `load` reads it."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != MANIFEST)
    content = {
        "format": FORMAT,
        "task": manifest.task.name,
        "name": manifest.name,
        "version": manifest.version,
        "languages": list(manifest.languages),
        "labels": list(manifest.task.labels),
        "max_tokens": manifest.max_tokens,
        "base": {"name": manifest.base, "sha256": manifest.base_digest},
        "calibration": {language: asdict(scaling) for language, scaling in manifest.calibration.items()},
        "data": [asdict(source) for source in manifest.sources],
        "metrics": [asdict(metric) for metric in manifest.metrics],
        "files": {str(file.relative_to(path)): file_digest(file) for file in files},
    }
    (path / MANIFEST).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return load_bundle(path)


def file_digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def external_locations(model: bytes) -> Iterator[str | None]:
    """Where an ONNX ModelProto keeps tensors outside itself; None for a mention that is not plainly an entry.

    Read from the bytes, as the entry `{key: "location", value: V}` of TensorProto.external_data is written, because
    the onnx package is not installed where Heed serves. A graph that has the word elsewhere is refused too.
    """
    for found in re.finditer(b"location", model):
        start, end = found.span()
        size = model[end + 1] if model[start - 2 : start] == b"\x0a\x08" and model[end : end + 1] == b"\x12" else 255
        yield model[end + 2 : end + 2 + size].decode("utf-8", "replace") if size < 128 else None
