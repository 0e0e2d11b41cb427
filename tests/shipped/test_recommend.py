"""The shipped recommender ranks what a person finds sensible, for cold items too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from models.bundle import SHIPPED_RECOMMEND, load_bundle
from models.ranking.bundle_files import load_own_catalogue, load_recommender
from models.ranking.events import EVENT_TYPES, History
from models.runtime.offline import open_text_encoder

BUNDLE = load_bundle(SHIPPED_RECOMMEND)
RECOMMENDER = load_recommender(BUNDLE)
_, ITEMS, VECTORS = load_own_catalogue(BUNDLE)
TRAINING_INDICES = np.arange(len(ITEMS))
ENCODER = open_text_encoder(BUNDLE)


def purchases(texts: Sequence[str]) -> History:
    vectors = RECOMMENDER.item_vectors(ENCODER.encode_texts(texts), [None] * len(texts))
    events = np.full(len(texts), EVENT_TYPES.index("purchase"))
    return History(vectors, np.full(len(texts), -1), events, np.full(len(texts), np.nan, np.float32))


@pytest.mark.parametrize(
    ("bought", "words"),
    [
        (
            ["Baking Set 9 Piece Retrospot", "Set Of 3 Cake Tins Pantry Design"],
            ("CAKE", "BAKING", "RETROSPOT", "PANTRY"),
        ),
        (["Jumbo Bag Red Retrospot", "Lunch Bag Suki Design"], ("BAG",)),
        (["Christmas Tree Decoration", "Paper Chain Kit Vintage Christmas"], ("CHRISTMAS", "PAPER CHAIN")),
    ],
)
def test_the_ranking_resembles_the_purchases(bought: list[str], words: tuple[str, ...]) -> None:
    ranking = RECOMMENDER.rank(purchases(bought), VECTORS, TRAINING_INDICES, 10)
    texts = [ITEMS[index].text.upper() for index in ranking.order]
    assert sum(any(word in text for word in words) for text in texts) >= 5, texts


def test_a_new_item_is_ranked_by_its_text() -> None:
    new = ["Lunch Bag Blue Elephants", "Wireless Router 300 Mbit"]
    vectors = RECOMMENDER.item_vectors(ENCODER.encode_texts(new), [None, None])
    ranking = RECOMMENDER.rank(purchases(["Lunch Bag Red Retrospot", "Lunch Bag Woodland"]), vectors, np.full(2, -2), 2)
    assert ranking.order.tolist() == [0, 1]


def test_a_history_in_two_languages_ranks_chinese_items() -> None:
    candidates = ["红色圣诞树装饰品", "不锈钢汽车零件"]
    vectors = RECOMMENDER.item_vectors(ENCODER.encode_texts(candidates), [None, None])
    ranking = RECOMMENDER.rank(purchases(["圣诞节挂饰", "Christmas Tree Decoration"]), vectors, np.full(2, -2), 2)
    assert ranking.order.tolist() == [0, 1]
    assert np.isfinite(ranking.scores).all()


def test_the_catalogue_has_the_vectors_of_its_texts() -> None:
    indices = list(range(0, len(ITEMS), 400))
    items = [ITEMS[index] for index in indices]
    vectors = RECOMMENDER.item_vectors(
        ENCODER.encode_texts([item.text for item in items]), [item.item_id for item in items]
    )
    np.testing.assert_allclose(vectors, VECTORS[indices], atol=2e-3)
