"""Intent heads: a set of intents on the vectors of an encoder, in a single file, and their predictions.

A linear layer separates the intents. A text is out of scope if its vector is far from all intents, compared with the
distances of held-out texts that are in scope. The distance is the geometric mean of two:

- to the nearest mean of an intent, in partly whitened space (Lee et al. 2018). It is the steadier of the two.
- to the nearest of a few groups of each intent's examples, much as to the nearest example (Sun et al. 2022). It sees
  the space between the different wordings of an intent.

So out-of-scope detection needs no examples of texts that are out of scope. Needs numpy only.
`models.prediction.intent_head_fit` fits heads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.prediction.calibration import POWERS, TEMPERATURES, log_softmax, scale_logits
from models.prediction.normalize import normalize_centered
from models.prediction.ranges import RangeError, check_array, check_finite, check_name, check_number
from models.prediction.tensor_file import UNREADABLE, ArtifactError, read_tensors, write_tensors

FORMAT = "heed-head-1"
SUFFIX = ".head.safetensors"
HEADS_FOLDER = "heads"
"""The folder of heads in a bundle."""

MAX_LABELS = 1000
MAX_DISTANCE = 1e12
TENSORS = ("center", "weight", "bias", "whiten", "means", "groups", "belonging")


@dataclass(frozen=True, slots=True)
class IntentHead:
    """A set of intents on the vectors of the encoder whose graph has the digest `encoder`. Arrays are fp32.

    `center` (width,) is subtracted from a vector, which is then scaled to length 1. Confidences come from `weight`
    (labels, width), `bias` (labels,), `temperature` and `power` (of `models.prediction.calibration.LogitScaling`).
    Distances come from `whiten` (width, rank), `means` (labels, rank) and `groups` (groups, rank). `belonging`
    (quantiles,) are the distances of held-out texts in scope, ascending. A text is out of scope if its score exceeds
    `threshold`. `figures` are measured values by name. `points` (labels + groups, rank), the means and groups, and
    their `squares` are stored because every request needs them.
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
    """Predictions for texts: `confidences` (texts, labels) sum to 1, `out_of_scope_scores` (texts,) are from 0 to 1.

    At a score of 0.97, 97 % of the texts in scope are nearer to an intent. So the threshold 0.95 rejects a twentieth of
    the texts in scope.
    """

    confidences: NDArray[np.float64]
    out_of_scope_scores: NDArray[np.float64]


def predict_intents(head: IntentHead, vectors: NDArray[np.floating]) -> IntentPredictions:
    """Return the confidences and out-of-scope scores of `vectors` (texts, width)."""
    directions = normalize_centered(vectors, head.center)
    return IntentPredictions(
        _confidences(head, directions), empirical_cdf(out_of_scope_distances(head, directions), head.belonging)
    )


def confidences(head: IntentHead, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the confidences (texts, labels) of `predict_intents`, without computing distances."""
    return _confidences(head, normalize_centered(vectors, head.center))


def _confidences(head: IntentHead, directions: NDArray[np.float32]) -> NDArray[np.float64]:
    logits = (directions @ head.weight.T + head.bias).astype(np.float64)
    return np.exp(log_softmax(scale_logits(logits, head.temperature, head.power)))


def out_of_scope_distances(head: IntentHead, directions: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the smallest distance to a mean times the smallest to a group, (texts,), in whitened space."""
    whitened = directions @ head.whiten
    squares = np.einsum("ij,ij->i", whitened, whitened)[:, None] - 2 * (whitened @ head.points.T) + head.squares
    means, groups = np.split(squares, [len(head.means)], axis=1)
    product = np.maximum(means.min(axis=1), 0) * np.maximum(groups.min(axis=1), 0)
    return np.asarray(np.sqrt(product), np.float64)


def empirical_cdf(distances: NDArray[np.float64], belonging: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the share of the texts in scope that are nearer. Beyond the farthest of them it keeps rising towards 1."""
    known = belonging.astype(np.float64)
    shares = np.linspace(0.0, 1.0 - 1.0 / len(known), len(known))
    excess = np.maximum(distances - known[-1], 0.0) / max(known[-1], 1e-9)
    return np.asarray(np.interp(distances, known, shares) + (1.0 - shares[-1]) * (1 - np.exp(-excess)))


def save_head(head: IntentHead, path: Path) -> None:
    """Write the head to `path`, atomically."""
    description = {
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
    write_tensors(path, description, tensors)


def load_head(path: Path, encoder: str) -> IntentHead:
    """Return the head in a file.

    Raises:
        ArtifactError: The file is no head, or the head belongs to an encoder with a digest other than `encoder`.
    """
    description, tensors = read_tensors(path, FORMAT)
    if "means" in tensors:  # before 1.2.0 a head had no groups: its means stand for them
        tensors = {"groups": tensors["means"]} | tensors
    if sorted(tensors) != sorted(TENSORS):
        raise ArtifactError(f"{path.name}: it lacks {', '.join(sorted(set(TENSORS) - set(tensors))) or 'nothing'}")
    try:
        head = IntentHead(
            name=description["name"],
            labels=tuple(str(label) for label in description["labels"]),
            languages=tuple(str(language) for language in description["languages"]),
            encoder=str(description["encoder"]),
            temperature=description["temperature"],
            power=description.get("power", 0.0),  # heads from before 1.1.0 have none
            threshold=description["threshold"],
            figures=dict(description["figures"]),
            **tensors,
        )
        validate(head, path.name, encoder)
    except ArtifactError:
        raise
    except UNREADABLE as error:
        raise ArtifactError(f"{path.name}: its description cannot be read ({error!r})") from error
    return head


def load_bundle_heads(bundle: Path, encoder: str) -> dict[str, IntentHead]:
    """Return the heads of a bundle by name; raises as `load_head`."""
    heads = [load_head(path, encoder) for path in sorted((bundle / HEADS_FOLDER).glob(f"*{SUFFIX}"))]
    return {head.name: head for head in heads}


def validate(head: IntentHead, file: str, encoder: str) -> None:
    """Raise ArtifactError if the head does not fit the encoder, or its labels and arrays do not fit each other."""
    if head.encoder != encoder:
        raise ArtifactError(
            f"{file}: it was fitted for another encoder ({head.encoder[:12]} instead of {encoder[:12]}); fit it again"
        )
    if not 2 <= len(head.labels) <= MAX_LABELS:
        raise ArtifactError(f"{file}: it has {len(head.labels)} intents; a head needs 2 to {MAX_LABELS}")
    if len(set(head.labels)) < len(head.labels):
        duplicate = next(label for label in head.labels if head.labels.count(label) > 1)
        raise ArtifactError(f"{file}: the intent {duplicate!r} appears twice")
    if not all(label.strip() for label in head.labels):
        raise ArtifactError(f"{file}: an intent has no name")
    labels, width, (groups, rank) = len(head.labels), head.center.size, head.groups.shape
    shapes = {"center": (width,), "weight": (labels, width), "bias": (labels,), "whiten": (width, rank)}
    shapes |= {"means": (labels, rank), "groups": (groups, rank), "belonging": (head.belonging.size,)}
    if any(getattr(head, name).shape != shape for name, shape in shapes.items()) or not head.belonging.size:
        raise ArtifactError(f"{file}: the shapes of its arrays do not fit each other")
    try:
        _check_numbers(head)
    except RangeError as error:
        raise ArtifactError(f"{file}: {error}; fit it again") from None


def _check_numbers(head: IntentHead) -> None:
    """Raise RangeError unless the name can be asked for, and all numbers are in ranges where predictions are finite."""
    check_name("name", head.name)
    check_number("temperature", head.temperature, *TEMPERATURES)
    check_number("power", head.power, *POWERS)
    check_number("threshold", head.threshold, 0.0, 1.0)
    for name, value in head.figures.items():
        check_finite(name, value)
    for name in set(TENSORS) - {"belonging"}:
        check_array(name, getattr(head, name))
    check_array("belonging", head.belonging, 0.0, MAX_DISTANCE)
    if (np.diff(head.belonging) < 0).any():
        raise RangeError("the numbers in its belonging should ascend")
