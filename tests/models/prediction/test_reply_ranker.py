from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.prediction.reply_ranker import ReplyRanker, ReplySet, load_ranker, load_replies, save_ranker, save_replies
from models.prediction.tensor_file import ArtifactError

RNG = np.random.default_rng(3)
RANKER = ReplyRanker(
    RNG.normal(0, 1, (12, 12)).astype(np.float32), RNG.normal(0, 1, (12, 12)).astype(np.float32), 6.0, -1.0, 0.2
)
VECTORS = RNG.normal(0, 1, (30, 12)).astype(np.float32)


def test_scores_order_replies_by_the_cosine_of_the_projections() -> None:
    scores = RANKER.score_replies(VECTORS[4], RANKER.project_replies(VECTORS))
    dialogue, replies = VECTORS[4] @ RANKER.dialogue, VECTORS @ RANKER.reply
    cosines = replies @ dialogue / np.linalg.norm(replies, axis=1) / np.linalg.norm(dialogue)
    assert np.argsort(scores).tolist() == np.argsort(cosines).tolist()
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(1 - 6 * cosines)), atol=1e-5)


def test_a_saved_ranker_and_a_saved_reply_set_load_unchanged(tmp_path: Path) -> None:
    save_ranker(RANKER, tmp_path / "ranker.safetensors")
    loaded = load_ranker(tmp_path / "ranker.safetensors")
    assert (loaded.slope, loaded.offset, loaded.min_score) == (6.0, -1.0, 0.2)
    np.testing.assert_array_equal(loaded.dialogue, RANKER.dialogue)
    replies = ReplySet("mine", "e" * 64, tuple(f"回复 {index}" for index in range(30)), RANKER.project_replies(VECTORS))
    save_replies(replies, tmp_path / "mine.replies.safetensors")
    reloaded = load_replies(tmp_path / "mine.replies.safetensors", "e" * 64)
    assert (reloaded.name, reloaded.texts) == (replies.name, replies.texts)
    np.testing.assert_array_equal(reloaded.projected, replies.projected)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.replies.safetensors"
    save_replies(ReplySet("mine", "e" * 64, ("a", "b"), RANKER.project_replies(VECTORS[:2])), path)
    with pytest.raises(ArtifactError, match="another encoder"):
        load_replies(path, "f" * 64)
    with pytest.raises(ArtifactError, match="not a file of the kind"):
        load_ranker(path)
    save_replies(ReplySet("mine", "e" * 64, ("a", "b"), RANKER.project_replies(VECTORS[:3])), path)
    with pytest.raises(ArtifactError, match="do not fit"):
        load_replies(path, "e" * 64)
