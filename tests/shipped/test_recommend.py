"""What the shipped recommender must do: what a person finds sensible, also for items that it never saw."""

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
NUMBERS = np.arange(len(ITEMS))
READER = open_text_encoder(BUNDLE)


def after(texts: Sequence[str]) -> History:
    vectors = RECOMMENDER.item_vectors(READER.encode_texts(texts), [None] * len(texts))
    kinds = np.full(len(texts), EVENT_TYPES.index("purchase"))
    return History(vectors, np.full(len(texts), -1), kinds, np.full(len(texts), np.nan, np.float32))


@pytest.mark.parametrize(
    ("bought", "word"),
    [
        (
            ["Baking Set 9 Piece Retrospot", "Set Of 3 Cake Tins Pantry Design"],
            ("CAKE", "BAKING", "RETROSPOT", "PANTRY"),
        ),
        (["Jumbo Bag Red Retrospot", "Lunch Bag Suki Design"], ("BAG",)),
        (["Christmas Tree Decoration", "Paper Chain Kit Vintage Christmas"], ("CHRISTMAS", "PAPER CHAIN")),
    ],
)
def test_like_goes_with_like(bought: list[str], word: tuple[str, ...]) -> None:
    found = RECOMMENDER.rank(after(bought), VECTORS, NUMBERS, 10)
    named = [ITEMS[place].text.upper() for place in found.order]
    assert sum(any(one in text for one in word) for text in named) >= 5, named


def test_new_item_is_ranked_by_its_text() -> None:
    new = ["Lunch Bag Blue Elephants", "Wireless Router 300 Mbit"]
    vectors = RECOMMENDER.item_vectors(READER.encode_texts(new), [None, None])
    found = RECOMMENDER.rank(after(["Lunch Bag Red Retrospot", "Lunch Bag Woodland"]), vectors, np.full(2, -2), 2)
    assert found.order.tolist() == [0, 1]


def test_chinese_items_and_both_languages_in_a_history() -> None:
    candidates = ["红色圣诞树装饰品", "不锈钢汽车零件"]
    vectors = RECOMMENDER.item_vectors(READER.encode_texts(candidates), [None, None])
    found = RECOMMENDER.rank(after(["圣诞节挂饰", "Christmas Tree Decoration"]), vectors, np.full(2, -2), 2)
    assert found.order.tolist() == [0, 1]
    assert np.isfinite(found.scores).all()


def test_catalogue_vectors_are_those_of_its_texts() -> None:
    some = list(range(0, len(ITEMS), 400))
    placed = RECOMMENDER.item_vectors(
        READER.encode_texts([ITEMS[place].text for place in some]), [ITEMS[p].item_id for p in some]
    )
    np.testing.assert_allclose(placed, VECTORS[some], atol=2e-3)
