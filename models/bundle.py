"""Bundles: saving, verifying and loading a model on disk.

A bundle is a folder whose `bundle.json` lists every file with its digest. It is refused as a whole, with a message of a
single line, and no file is opened before its digest is verified. Needs no torch and no network. Knows nothing of
training.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.prediction.calibration import Calibration, LogitScaling, find_scaling
from models.prediction.ranges import RangeError, check_finite, check_name, check_number
from models.tasks import INTENT, RECOMMEND, SENTIMENT, TASKS, Task
from models.text.reading import READINGS

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
ALLOWED_SUFFIXES = (".onnx", ".json", ".md", ".png", ".safetensors", ".data")
"""The suffixes of files that a bundle may hold. Anything else is refused, pickled weights above all."""

DOCUMENT_SUFFIXES = (".md", ".png")
"""The suffixes of files that describe the model and do not change its predictions."""

PICKLE_MAGIC = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
"""The first bytes of pickles, and of the zip archives in which torch saves them."""

TOKEN_LIMITS = (8, 65_536)
"""The range of a bundle's token limit."""


class BundleError(Exception):
    """A bundle that must not be served. The message is a single line for the person who starts the service."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A measured value; `command` reproduces it."""

    dataset: str
    language: str
    name: str
    value: float
    command: str


@dataclass(frozen=True, slots=True)
class Source:
    """A data set on which the model was trained."""

    name: str
    language: str
    licence: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `bundle.json`; `base` and `base_digest` name the encoder from which the model was fine-tuned.

    `reading` is how the tokenizer reads a text: 0 as sent, or another of `READINGS`.
    """

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
    reading: int = field(default=0, kw_only=True)


@dataclass(frozen=True, slots=True)
class Bundle(Manifest):
    """A bundle on disk; `digest` is the SHA-256 of its manifest, which holds the digests of all its files.

    `encoder_digest` covers its graph and its reading, and must match in heads and reply sets. `model_digest` covers all
    files but the card and its pictures, and must match in catalogues.
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

    def scaling(self, language: str, has_entity: bool) -> LogitScaling:
        """Return the scaling for a language; one that the bundle lacks is treated as its first language."""
        known = language if language in self.languages else self.languages[0]
        return find_scaling(self.calibration, known, has_entity)


def load_bundle(path: Path) -> Bundle:
    """Verify and return a bundle; raises BundleError if anything differs from its manifest."""
    bundle, digests = _read_unverified(path.resolve())
    verify_files(bundle.path, digests)
    verify_external_data(bundle.path, bundle.graph)
    return bundle


def load_unverified(path: Path) -> Bundle:
    """Return a bundle from its manifest alone, for callers that never open its other files; raises BundleError."""
    return _read_unverified(path.resolve())[0]


def _read_unverified(path: Path) -> tuple[Bundle, dict[str, str]]:
    """Return the bundle, unverified, and the digests of its files by name."""
    if not (path / MANIFEST).is_file():
        raise BundleError(f"no bundle at {path}: it has no {MANIFEST}")
    content = (path / MANIFEST).read_bytes()
    try:
        manifest = json.loads(content)
        if manifest["format"] != FORMAT:
            raise BundleError(
                f"bundle {path.name}: format {manifest['format']} is not {FORMAT}; export it again with this Heed"
            )
        bundle = read_manifest(path, manifest, hashlib.sha256(content).hexdigest())
        return bundle, {str(name): str(digest) for name, digest in manifest["files"].items()}
    except RangeError as error:
        raise BundleError(f"bundle {path.name}: {error}; export it again") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise BundleError(f"bundle {path.name}: {MANIFEST} cannot be read ({error!r}); export it again") from error


def read_manifest(path: Path, manifest: dict[str, Any], digest: str) -> Bundle:
    """Return the bundle of a parsed manifest; raises BundleError if its task, labels and calibration do not fit."""
    task = TASKS.get(manifest["task"])
    if task is None:
        raise BundleError(f"bundle {path.name}: its task {manifest['task']!r} is unknown; tasks are {', '.join(TASKS)}")
    if tuple(manifest["labels"]) != task.labels:
        raise BundleError(
            f"bundle {path.name}: its labels {manifest['labels']} differ from the task's, {list(task.labels)}"
        )
    calibration = {language: _read_scaling(row) for language, row in manifest["calibration"].items()}
    reading = manifest.get("reading", 0)
    if type(reading) is not int or reading not in READINGS:
        raise BundleError(f"bundle {path.name}: its reading {reading!r} is unknown; it needs a newer Heed")
    languages = tuple(check_name("language", language) for language in manifest["languages"])
    if not languages:
        raise BundleError(f"bundle {path.name}: it names no language; export it again")
    max_tokens = int(check_number("max_tokens", manifest["max_tokens"], *TOKEN_LIMITS))
    for key in (*languages, *calibration) if task.labels else ():
        if key not in calibration or len(calibration[key].bias) != len(task.labels):
            raise BundleError(f"bundle {path.name}: no calibration of {len(task.labels)} labels for {key}")
    return Bundle(
        path=path,
        digest=digest,
        encoder_digest=encoder_digest(str(manifest["files"].get(GRAPH, "")), reading),
        model_digest=model_digest(manifest["files"], max_tokens, reading),
        name=check_name("name", manifest["name"]),
        version=check_name("version", manifest["version"]),
        task=task,
        languages=languages,
        max_tokens=max_tokens,
        base=str(manifest["base"]["name"]),
        base_digest=str(manifest["base"]["sha256"]),
        calibration=calibration,
        sources=tuple(Source(**row) for row in manifest["data"]),
        metrics=tuple(_read_metric(row) for row in manifest["metrics"]),
        reading=reading,
    )


def _read_scaling(row: dict[str, Any]) -> LogitScaling:
    scaling = LogitScaling(row["temperature"], row["power"], tuple(row["bias"]))
    scaling.check()
    return scaling


def _read_metric(row: dict[str, Any]) -> Metric:
    metric = Metric(**row)
    check_finite(f"metric {metric.name}", metric.value)
    return metric


def encoder_digest(graph_digest: str, reading: int) -> str:
    """Return the digest of what turns a text into a vector: that of the graph alone if texts are read as sent."""
    return hashlib.sha256(json.dumps([graph_digest, reading]).encode()).hexdigest() if reading else graph_digest


def model_digest(digests: dict[str, str], max_tokens: int, reading: int = 0) -> str:
    """Return the digest of everything that computes: the token limit, the reading and all files but documents."""
    files = sorted(item for item in digests.items() if Path(item[0]).suffix not in DOCUMENT_SUFFIXES)
    content = [max_tokens, files, reading] if reading else [max_tokens, files]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def verify_files(path: Path, digests: dict[str, str]) -> None:
    """Raise BundleError unless files and manifest agree, no file was changed and no file can run code."""
    for name in (GRAPH, TOKENIZER, CARD):
        if name not in digests:
            raise BundleError(f"bundle {path.name}: {MANIFEST} lists no {name}; export it again")
    present = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir()} - {MANIFEST}
    for name in sorted(present | set(digests)):
        if Path(name).suffix not in ALLOWED_SUFFIXES:
            raise BundleError(f"bundle {path.name}: {name} is not a kind of file that a bundle may hold; remove it")
        if name not in digests:
            raise BundleError(f"bundle {path.name}: {name} is not listed in {MANIFEST}; remove it or export again")
        file = path / name
        if not file.is_file() or file.is_symlink() or not file.resolve().is_relative_to(path):
            raise BundleError(f"bundle {path.name}: {name} is missing, or links out of the folder; export it again")
        if file_digest(file) != digests[name]:
            raise BundleError(f"bundle {path.name}: {name} was changed (its SHA-256 differs); copy or export it again")
        with file.open("rb") as opened:
            start = opened.read(9)
            # A safetensors file begins with the length of its header, which may look like a pickle's first two bytes.
            # No pickle goes on with zeros.
            if start.startswith(PICKLE_MAGIC) and start[2:] != b"\0\0\0\0\0\0{":
                raise BundleError(f"bundle {path.name}: {name} is a pickle under another name; remove it")


def verify_external_data(path: Path, graph: Path) -> None:
    """Raise BundleError unless all external data of the graph lie in files of the bundle's folder, and only there."""
    for location in find_external_locations(graph.read_bytes()):
        file = path / (location or "")
        inside = location and not Path(location).is_absolute() and file.resolve().is_relative_to(path)
        if not inside or not file.is_file():
            raise BundleError(
                f"bundle {path.name}: {graph.name} reads data from {location!r}, outside the bundle; export it again"
            )
        if file.stat().st_nlink > 1:  # the onnx package refuses it as well
            raise BundleError(
                f"bundle {path.name}: {location} has hard links, so another path could change it; copy the folder"
            )


def save_bundle(path: Path, manifest: Manifest) -> Bundle:
    """Write the manifest of a folder that has all other files already, and return the verified bundle."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != MANIFEST)
    content = {
        "format": FORMAT,
        "task": manifest.task.name,
        "name": manifest.name,
        "version": manifest.version,
        "languages": list(manifest.languages),
        "labels": list(manifest.task.labels),
        "max_tokens": manifest.max_tokens,
        **({"reading": manifest.reading} if manifest.reading else {}),
        "base": {"name": manifest.base, "sha256": manifest.base_digest},
        "calibration": {language: asdict(scaling) for language, scaling in manifest.calibration.items()},
        "data": [asdict(source) for source in manifest.sources],
        "metrics": [asdict(metric) for metric in manifest.metrics],
        "files": {str(file.relative_to(path)): file_digest(file) for file in files},
    }
    (path / MANIFEST).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return load_bundle(path)


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def find_external_locations(model: bytes) -> Iterator[str | None]:
    """Yield the locations of external tensors in an ONNX ModelProto, None for a mention that is not plainly an entry.

    The bytes are searched for the encoded entry `{key: "location", value: V}` of TensorProto.external_data, because the
    onnx package is not installed in serving. A graph with the word anywhere else is refused too.
    """
    for match in re.finditer(b"location", model):
        start, end = match.span()
        size = model[end + 1] if model[start - 2 : start] == b"\x0a\x08" and model[end : end + 1] == b"\x12" else 255
        yield model[end + 2 : end + 2 + size].decode("utf-8", "replace") if size < 128 else None
