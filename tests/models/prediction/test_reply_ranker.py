from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize(
    ("field", "value", "range_of_it"),
    [
        *(("slope", value, "-300 to 300") for value in (np.nan, np.inf, 301.0)),
        ("offset", -1e308, "-300 to 300"),
        ("min_score", 1.01, "0 to 1"),
        ("reply", RANKER.reply * np.float32(1e20), "reply should be from"),
        ("dialogue", RANKER.dialogue * np.nan, "dialogue should be from"),
        ("dialogue", RANKER.dialogue[:3], "shapes"),
    ],
)
def test_a_ranker_with_a_number_outside_its_range_is_refused(
    field: str, value: Any, range_of_it: str, tmp_path: Path
) -> None:
    save_ranker(replace(RANKER, **{field: value}), tmp_path / "ranker.safetensors")
    with pytest.raises(ArtifactError, match=range_of_it):
        load_ranker(tmp_path / "ranker.safetensors")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("name", "", "1 to 128 characters"),
        ("name", "  ", "1 to 128 characters"),
        ("texts", ("a", " "), "a reply is empty"),
        ("projected", np.full((2, 12), np.nan, np.float32), "finite"),
        ("projected", np.full((2, 12), 3e38, np.float32), "from -1.01 to 1.01"),
        ("projected", np.zeros(2, np.float32), "do not fit"),
    ],
)
def test_a_reply_set_that_cannot_be_served_is_refused(field: str, value: Any, reason: str, tmp_path: Path) -> None:
    replies = ReplySet("mine", "e" * 64, ("a", "b"), RANKER.project_replies(VECTORS[:2]))
    save_replies(replace(replies, **{field: value}), tmp_path / "mine.replies.safetensors")
    with pytest.raises(ArtifactError, match=reason):
        load_replies(tmp_path / "mine.replies.safetensors", "e" * 64)
