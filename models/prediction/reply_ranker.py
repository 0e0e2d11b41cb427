"""Reply ranking: two projections of an encoder's vectors, and sets of replies that are embedded in advance.

A reply's score is a logistic function of the cosine between the projected vectors (dual encoder, Henderson et al.
2019), fitted on held-out dialogues. It is the probability that an agent gave this reply rather than another of the set.
Needs numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.prediction.normalize import l2_normalize
from models.prediction.ranges import RangeError, check_array, check_name, check_number
from models.prediction.tensor_file import UNREADABLE, ArtifactError, read_tensors, write_tensors

RANKER_FORMAT, SET_FORMAT = "heed-ranker-1", "heed-replies-1"
RANKER = "replies.safetensors"
SET_SUFFIX = ".replies.safetensors"

SLOPES = OFFSETS = (-300.0, 300.0)
"""The ranges of a ranker's numbers, in which no score overflows."""

_MAX_COSINE = 1.01  # of a vector of length 1, with rounding


@dataclass(frozen=True, slots=True)
class ReplyRanker:
    """Projections `dialogue` and `reply` (width, rank). A best score under `min_score` means that no reply fits."""

    dialogue: NDArray[np.float32]
    reply: NDArray[np.float32]
    slope: float
    offset: float
    min_score: float

    def project_replies(self, vectors: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the projections (texts, rank) of replies' vectors (texts, width)."""
        return l2_normalize(vectors @ self.reply)

    def score_replies(self, vector: NDArray[np.floating], projected: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the score of each projected reply (texts, rank) after a dialogue with this vector (width,)."""
        return self._scale_cosines(projected @ l2_normalize(vector @ self.dialogue))

    def score_dialogues(self, vectors: NDArray[np.floating], projected: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the score of a projected reply (rank,) after each dialogue with `vectors` (dialogues, width)."""
        return self._scale_cosines(l2_normalize(vectors @ self.dialogue) @ projected)

    def _scale_cosines(self, cosines: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(1 / (1 + np.exp(-(self.slope * cosines.astype(np.float64) + self.offset))))


@dataclass(frozen=True, slots=True)
class ReplySet:
    """A named set of replies, in order: `projected` is (texts, rank), `encoder` the digest of the encoder's graph."""

    name: str
    encoder: str
    texts: tuple[str, ...]
    projected: NDArray[np.float32]


def save_ranker(ranker: ReplyRanker, path: Path) -> None:
    """Write the ranker to `path`, atomically."""
    description = {"format": RANKER_FORMAT, "slope": ranker.slope, "offset": ranker.offset, "least": ranker.min_score}
    tensors = {name: np.ascontiguousarray(getattr(ranker, name), np.float32) for name in ("dialogue", "reply")}
    write_tensors(path, description, tensors)


def load_ranker(path: Path) -> ReplyRanker:
    """Return the ranker in a file; raises ArtifactError if it cannot be read."""
    description, tensors = read_tensors(path, RANKER_FORMAT)
    try:
        slope = check_number("slope", description["slope"], *SLOPES)
        offset = check_number("offset", description["offset"], *OFFSETS)
        min_score = check_number("least", description["least"], 0.0, 1.0)
        for name in ("dialogue", "reply"):
            check_array(name, tensors[name])
        if tensors["dialogue"].ndim != 2 or tensors["dialogue"].shape != tensors["reply"].shape:
            raise ArtifactError(f"{path.name}: the shapes of its arrays do not fit each other")
        return ReplyRanker(tensors["dialogue"], tensors["reply"], slope, offset, min_score)
    except RangeError as error:
        raise ArtifactError(f"{path.name}: {error}") from None
    except ArtifactError:
        raise
    except UNREADABLE as error:
        raise ArtifactError(f"{path.name}: it cannot be read ({error!r})") from error


def save_replies(replies: ReplySet, path: Path) -> None:
    """Write the reply set to `path`, atomically."""
    description = {
        "format": SET_FORMAT,
        "name": replies.name,
        "encoder": replies.encoder,
        "texts": list(replies.texts),
    }
    tensors = {"placed": np.ascontiguousarray(replies.projected, np.float32)}
    write_tensors(path, description, tensors)


def load_replies(path: Path, encoder: str, rank: int | None = None) -> ReplySet:
    """Return the reply set in a file.

    Raises:
        ArtifactError: The file is no reply set, or the set belongs to an encoder with another digest, or its vectors
            are not of this rank.
    """
    description, tensors = read_tensors(path, SET_FORMAT)
    try:
        name, digest, texts = (description[key] for key in ("name", "encoder", "texts"))
        replies = ReplySet(check_name("name", name), str(digest), tuple(map(str, texts)), tensors["placed"])
        check_array("vectors", replies.projected, -_MAX_COSINE, _MAX_COSINE)
    except RangeError as error:
        raise ArtifactError(f"{path.name}: {error}; add it again") from None
    except UNREADABLE as error:
        raise ArtifactError(f"{path.name}: it cannot be read ({error!r})") from error
    if replies.encoder != encoder:
        raise ArtifactError(
            f"{path.name}: it was embedded by another encoder ({replies.encoder[:12]} instead of {encoder[:12]}); "
            "add it again"
        )
    if not all(text.strip() for text in replies.texts):
        raise ArtifactError(f"{path.name}: a reply is empty; add it again")
    shape = replies.projected.shape
    if not replies.texts or len(shape) != 2 or shape[0] != len(replies.texts) or rank not in (None, shape[1]):
        raise ArtifactError(f"{path.name}: its replies and vectors do not fit each other; add it again")
    return replies
