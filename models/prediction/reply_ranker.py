"""Which reply fits a dialogue: two projections of one encoder's vectors, and sets of replies that are embedded once.

A reply's score is a logistic function of the cosine between the projected vectors (dual encoder, Henderson et al.
2019), fitted on held-out dialogues: the probability that an agent gave this reply rather than another of the set. Needs
numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.prediction.normalize import l2_normalize
from models.prediction.tensor_file import ArtifactError, read_tensors, write_tensors

RANKER_FORMAT, SET_FORMAT = "heed-ranker-1", "heed-replies-1"
RANKER = "replies.safetensors"
SET_SUFFIX = ".replies.safetensors"


@dataclass(frozen=True, slots=True)
class ReplyRanker:
    """`dialogue` and `reply` are (width, rank); a best score under `least` is no good reply."""

    dialogue: NDArray[np.float32]
    reply: NDArray[np.float32]
    slope: float
    offset: float
    min_score: float

    def project_replies(self, vectors: NDArray[np.floating]) -> NDArray[np.float32]:
        """Of replies' vectors, (texts, width): what they are kept as, (texts, rank)."""
        return l2_normalize(vectors @ self.reply)

    def scores(self, vector: NDArray[np.floating], placed: NDArray[np.float32]) -> NDArray[np.float64]:
        """Of each placed reply after a dialogue with this vector, (width,): from 0 to 1."""
        return self._fit(placed @ l2_normalize(vector @ self.dialogue))

    def score_dialogues(self, vectors: NDArray[np.floating], placed: NDArray[np.float32]) -> NDArray[np.float64]:
        """Of one placed reply, (rank,), after each of several dialogues, (dialogues, width): (dialogues,)."""
        return self._fit(l2_normalize(vectors @ self.dialogue) @ placed)

    def _fit(self, cosines: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(1 / (1 + np.exp(-(self.slope * cosines.astype(np.float64) + self.offset))))


@dataclass(frozen=True, slots=True)
class ReplySet:
    """Replies of one name, in order; `placed` is (texts, rank), `encoder` the digest of what embedded them."""

    name: str
    encoder: str
    texts: tuple[str, ...]
    projected: NDArray[np.float32]


def save_ranker(ranker: ReplyRanker, path: Path) -> None:
    about = {"format": RANKER_FORMAT, "slope": ranker.slope, "offset": ranker.offset, "least": ranker.min_score}
    tensors = {name: np.ascontiguousarray(getattr(ranker, name), np.float32) for name in ("dialogue", "reply")}
    write_tensors(path, about, tensors)


def load_ranker(path: Path) -> ReplyRanker:
    """Raises ArtifactError."""
    about, tensors = read_tensors(path, RANKER_FORMAT)
    try:
        slope, offset, min_score = (float(about[name]) for name in ("slope", "offset", "least"))
        return ReplyRanker(tensors["dialogue"], tensors["reply"], slope, offset, min_score)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path.name}: it cannot be read ({error!r})") from error


def save_replies(replies: ReplySet, path: Path) -> None:
    """At once or not at all."""
    about = {
        "format": SET_FORMAT,
        "name": replies.name,
        "encoder": replies.encoder,
        "texts": list(replies.texts),
    }
    tensors = {"placed": np.ascontiguousarray(replies.projected, np.float32)}
    write_tensors(path, about, tensors)


def load_replies(path: Path, encoder: str) -> ReplySet:
    """Raises HeadError when the file is no reply set, or was made for another encoder."""
    about, tensors = read_tensors(path, SET_FORMAT)
    try:
        found = ReplySet(str(about["name"]), str(about["encoder"]), tuple(map(str, about["texts"])), tensors["placed"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path.name}: it cannot be read ({error!r})") from error
    if found.encoder != encoder:
        raise ArtifactError(
            f"{path.name}: it was made for another encoder ({found.encoder[:12]}, this one is {encoder[:12]}); "
            "add it again"
        )
    if not found.texts or found.projected.shape[:1] != (len(found.texts),) or not np.isfinite(found.projected).all():
        raise ArtifactError(f"{path.name}: its replies and vectors do not fit each other")
    return found
