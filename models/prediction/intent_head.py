"""A head: a set of intents on the vectors of one encoder, in one file, and what it says of a vector.

Intents are told apart by a linear layer, and a text that is none of them by how far its vector is from all of theirs,
set beside how far held-out texts are that do belong. That is the geometric mean of two distances: to the nearest mean
of an intent (Lee et al. 2018, whose whitening is done in part), and to the nearest of a few groups of each intent's
examples (as to the nearest example, Sun et al. 2022): the first is the steadier, the second sees what lies between the
ways in which an intent is asked for. So every set of intents knows what is outside it, without examples of that. Needs
numpy only; `models.prediction.intent_head_fit` makes heads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.prediction.calibration import log_softmax, scale_logits
from models.prediction.normalize import normalize_centered
from models.prediction.tensor_file import ArtifactError, read_tensors, write_tensors

FORMAT = "heed-head-1"
SUFFIX = ".head.safetensors"
HEADS = "heads"
"""The folder of a bundle's own heads."""

MAX_LABELS = 1000
TENSORS = ("center", "weight", "bias", "whiten", "means", "groups", "belonging")


@dataclass(frozen=True, slots=True)
class IntentHead:
    """`encoder` is the digest of the graph whose vectors it reads; arrays are fp32.

    `center` (width,) is taken off a vector, which is then brought to length 1. `weight` (labels, width), `bias`
    (labels,), `temperature` and `power` (of `models.prediction.calibration.LogitScaling`) give the confidences;
    `whiten`
    (width, rank) and
    `means` (labels, rank) and `groups` (groups, rank) the distances; `belonging` (quantiles,) are the distances of
    held-out texts that belong, rising. A text is out of scope when its score is above `threshold`. `figures` are
    measured ones, by name. `points` (labels + groups, rank), which are means and groups, and their `squares` are kept,
    because every request needs them.
    """

    name: str
    labels: tuple[str, ...]
    languages: tuple[str, ...]
    encoder: str
    center: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    temperature: float
    power: float
    whiten: NDArray[np.float32]
    means: NDArray[np.float32]
    groups: NDArray[np.float32]
    belonging: NDArray[np.float32]
    threshold: float
    figures: dict[str, float]
    points: NDArray[np.float32] = field(init=False, repr=False)
    squares: NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", np.concatenate([self.means, self.groups]))
        object.__setattr__(self, "squares", np.einsum("ij,ij->i", self.points, self.points))


@dataclass(frozen=True, slots=True)
class IntentPredictions:
    """Of several vectors: `confidences` (texts, labels) sum to 1; `outside` (texts,) is from 0 to 1.

    `outside` 0.97 says that of the texts that do belong 97 % are nearer to an intent: the threshold 0.95 turns away one
    in twenty of those.
    """

    confidences: NDArray[np.float64]
    out_of_scope_scores: NDArray[np.float64]


def predict_intents(head: IntentHead, vectors: NDArray[np.floating]) -> IntentPredictions:
    """`vectors` (texts, width)."""
    direction = normalize_centered(vectors, head.center)
    return IntentPredictions(
        _confidences(head, direction), empirical_cdf(out_of_scope_distances(head, direction), head.belonging)
    )


def confidences(head: IntentHead, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """(texts, labels): those of `judge`, without its distances."""
    return _confidences(head, normalize_centered(vectors, head.center))


def _confidences(head: IntentHead, direction: NDArray[np.float32]) -> NDArray[np.float64]:
    logits = (direction @ head.weight.T + head.bias).astype(np.float64)
    return np.exp(log_softmax(scale_logits(logits, head.temperature, head.power)))


def out_of_scope_distances(head: IntentHead, direction: NDArray[np.float32]) -> NDArray[np.float64]:
    """The smallest distance to a mean times that to a group, (texts,), in whitened space."""
    place = direction @ head.whiten
    squares = np.einsum("ij,ij->i", place, place)[:, None] - 2 * (place @ head.points.T) + head.squares
    means, groups = np.split(squares, [len(head.means)], axis=1)
    near = np.maximum(means.min(axis=1), 0) * np.maximum(groups.min(axis=1), 0)
    return np.asarray(np.sqrt(near), np.float64)


def empirical_cdf(distance: NDArray[np.float64], belonging: NDArray[np.float32]) -> NDArray[np.float64]:
    """The share of the texts that belong which are nearer; beyond the farthest of them it goes on rising towards 1."""
    known = belonging.astype(np.float64)
    steps = np.linspace(0.0, 1.0 - 1.0 / len(known), len(known))
    over = np.maximum(distance - known[-1], 0.0) / max(known[-1], 1e-9)
    return np.asarray(np.interp(distance, known, steps) + (1.0 - steps[-1]) * (1 - np.exp(-over)))


def save_head(head: IntentHead, path: Path) -> None:
    """At once or not at all."""
    about = {
        "format": FORMAT,
        "name": head.name,
        "labels": list(head.labels),
        "languages": list(head.languages),
        "encoder": head.encoder,
        "temperature": head.temperature,
        "power": head.power,
        "threshold": head.threshold,
        "figures": head.figures,
    }
    tensors = {name: np.ascontiguousarray(getattr(head, name), np.float32) for name in TENSORS}
    write_tensors(path, about, tensors)


def load_head(path: Path, encoder: str) -> IntentHead:
    """Raises HeadError when the file is no head, or was made for an encoder of another digest than `encoder`."""
    about, tensors = read_tensors(path, FORMAT)
    tensors = {"groups": tensors["means"]} | tensors if "means" in tensors else tensors  # before 1.2.0: their own group
    if sorted(tensors) != sorted(TENSORS):
        raise ArtifactError(f"{path.name}: it lacks {', '.join(sorted(set(TENSORS) - set(tensors))) or 'nothing'}")
    try:
        head = IntentHead(
            name=str(about["name"]),
            labels=tuple(str(label) for label in about["labels"]),
            languages=tuple(str(language) for language in about["languages"]),
            encoder=str(about["encoder"]),
            temperature=float(about["temperature"]),
            power=float(about.get("power", 0.0)),  # heads made before 1.1.0 have none
            threshold=float(about["threshold"]),
            figures={str(name): float(value) for name, value in about["figures"].items()},
            **tensors,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path.name}: its description cannot be read ({error!r})") from error
    validate(head, path.name, encoder)
    return head


def load_bundle_heads(bundle: Path, encoder: str) -> dict[str, IntentHead]:
    """A bundle's own, by name."""
    heads = [load_head(path, encoder) for path in sorted((bundle / HEADS).glob(f"*{SUFFIX}"))]
    return {head.name: head for head in heads}


def validate(head: IntentHead, file: str, encoder: str) -> None:
    if head.encoder != encoder:
        raise ArtifactError(
            f"{file}: it was made for another encoder ({head.encoder[:12]}, this one is {encoder[:12]}); train it again"
        )
    if not 2 <= len(head.labels) <= MAX_LABELS:
        raise ArtifactError(f"{file}: it has {len(head.labels)} intents; 2 to {MAX_LABELS} are possible")
    if len(set(head.labels)) < len(head.labels):
        twice = next(label for label in head.labels if head.labels.count(label) > 1)
        raise ArtifactError(f"{file}: the intent {twice!r} is there twice")
    if not all(label.strip() for label in head.labels):
        raise ArtifactError(f"{file}: an intent has no name")
    labels, width, (groups, rank) = len(head.labels), head.center.size, head.groups.shape
    fitting = {"center": (width,), "weight": (labels, width), "bias": (labels,), "whiten": (width, rank)}
    fitting |= {"means": (labels, rank), "groups": (groups, rank), "belonging": (head.belonging.size,)}
    if any(getattr(head, name).shape != shape for name, shape in fitting.items()) or not head.belonging.size:
        raise ArtifactError(f"{file}: the shapes of its arrays do not fit each other")
    if not all(np.isfinite(getattr(head, name)).all() for name in TENSORS) or head.temperature <= 0:
        raise ArtifactError(f"{file}: its arrays hold something that is no number")
