"""Recommendations over HTTP: rankings, histories, and excluded items."""

from __future__ import annotations

from typing import Any

import pytest

from models.bundle import Bundle
from tests.support.recommender_app import BOUGHT, Shop, event, ids, scores
from tests.support.service_app import assert_problem
from tests.support.tiny_bundle import CATALOGUE, CATALOGUE_ITEMS

pytestmark = pytest.mark.anyio


# Rankings.


async def test_the_whole_catalogue_is_ranked_without_candidates(shop: Shop) -> None:
    result = await shop.ask([BOUGHT, event("item-b2", "view")], top_k=7, id="u-17")
    assert [item["rank"] for item in result["items"]] == [1, 2, 3, 4, 5, 6, 7]
    answer = [item["score"] for item in result["items"]]
    assert answer == sorted(answer, reverse=True)
    texts = {item.item_id: item.text for item in CATALOGUE_ITEMS}
    assert all(texts[item["item_id"]] == item["text"] for item in result["items"])
    assert {item["candidate_index"] for item in result["items"]} == {None}
    assert (result["catalogue"], result["cold_start"], result["id"]) == (CATALOGUE, False, "u-17")
    assert (result["history_used"], result["history_dropped"], result["history_skipped"]) == (2, 0, 0)
    everything = await shop.ask([BOUGHT, event("item-b2", "view")], top_k=100)
    assert sorted(ids(everything), key=str) == sorted(texts)
    assert ids(everything)[:7] == ids(result)


async def test_candidates_are_ranked_as_in_the_whole_catalogue(shop: Shop) -> None:
    everything = scores(await shop.ask([BOUGHT], top_k=100))
    candidates = [{"item_id": item_id} for item_id in ("item-c1", "item-a3", "item-上2", "item-b8")]
    result = await shop.ask([BOUGHT], candidates=candidates)
    assert scores(result) == {
        candidate["item_id"]: pytest.approx(everything[candidate["item_id"]]) for candidate in candidates
    }
    for item in result["items"]:
        assert candidates[item["candidate_index"]]["item_id"] == item["item_id"]


async def test_the_text_of_an_item_scores_like_the_item_without_its_id_embedding(
    shop: Shop, recommend_bundle: Bundle
) -> None:
    """The model adds id embeddings only to items of its training, so a text has none."""
    known, sent = [
        await shop.ask([BOUGHT], candidates=[result]) for result in ({"item_id": "item-c4"}, {"text": "cccc"})
    ]
    (item,) = sent["items"]
    assert (item["item_id"], item["text"], item["candidate_index"]) == (None, "cccc", 0)
    assert item["score"] == pytest.approx(known["items"][0]["score"], abs=0.1)
    expected = await shop.ask([BOUGHT], candidates=[{"item_id": "mine", "text": "cccc"}])
    assert expected["items"][0] | {"item_id": None} == item
    assert expected["items"][0]["item_id"] == "mine"


async def test_a_text_in_the_history_counts(shop: Shop) -> None:
    without = scores(await shop.ask([BOUGHT], top_k=100))
    with_it = scores(await shop.ask([{"text": "bbbb", "event": "view"}, BOUGHT], top_k=100))
    assert with_it.keys() == without.keys()
    assert with_it != without


async def test_an_item_of_the_catalogue_needs_no_text_and_is_not_embedded_again(shop: Shop) -> None:
    assert await shop.ask([BOUGHT | {"text": "bbbb"}]) == await shop.ask([BOUGHT])


async def test_a_text_counts_for_every_mention_of_its_id(shop: Shop) -> None:
    viewed = {"item_id": "new", "event": "view"}
    once = await shop.ask([viewed, BOUGHT], candidates=[{"item_id": "new", "text": "bbb"}, {"item_id": "item-c1"}])
    twice = await shop.ask(
        [viewed | {"text": "bbb"}, BOUGHT], candidates=[{"item_id": "new", "text": "bbb"}, {"item_id": "item-c1"}]
    )
    assert once == twice
    (reason,) = [result for item in once["items"] if item["item_id"] == "new" for result in item["reasons"][:1]]
    assert reason["history_index"] == 0  # the same item, which has the largest weight in the tiny model


async def test_histories_may_have_both_languages(shop: Shop) -> None:
    history = [
        {"text": "手机质量好", "event": "view"},
        event("item-上3", "cart"),
        {"text": "a phone", "event": "purchase"},
    ]
    result = await shop.ask(history, candidates=[{"text": "快递"}, {"text": "bbb"}, {"item_id": "item-下2"}])
    assert result["history_used"] == 3
    assert sorted(item["text"] for item in result["items"]) == sorted(["快递", "bbb", "下下"])


@pytest.mark.parametrize(
    ("text", "mark"), [("Tasse à thé en porcelaine", True), ("чайник", True), ("手机质量好", None), ("a phone", None)]
)
async def test_a_text_in_another_language_marks_the_result(shop: Shop, text: str, mark: bool | None) -> None:
    for history, candidates in (
        ([BOUGHT, {"text": text, "event": "view"}], [{"item_id": "item-c1"}]),
        ([BOUGHT], [{"text": text}, {"text": "bbb"}]),
    ):
        result = await shop.ask(history, candidates=candidates)
        assert result.get("unsupported_language") is mark
        assert "language" not in result
    known = BOUGHT | {"text": text}  # the catalogue has the id, so this text is not read
    assert "unsupported_language" not in await shop.ask([known])


# Histories.


async def test_reasons_have_the_indexes_of_the_request(shop: Shop) -> None:
    """In the tiny model, repeated items have the largest weights."""
    history = [event("item-c1", days_ago=1), event("item-a3", days_ago=9), event("item-b2", days_ago=5)]
    for index, item in enumerate(history):
        result = await shop.ask(history, candidates=[{"item_id": item["item_id"]}])
        because = result["items"][0]["reasons"]
        assert because[0]["history_index"] == index
        weights = [reason["weight"] for reason in because]
        assert weights == sorted(weights, reverse=True)
        assert weights[-1] >= 0.02
        assert sum(weights) < 1
        assert len(weights) <= 3


async def test_small_weights_are_no_reasons(shop: Shop) -> None:
    history = [event(item.item_id) for item in CATALOGUE_ITEMS] * 6
    result = await shop.ask(history, top_k=40)
    reasons = [reason["weight"] for item in result["items"] for reason in item["reasons"]]
    assert len(reasons) < 40 * 3
    assert all(weight >= 0.02 for weight in reasons)


async def test_events_are_sorted_by_their_times(shop: Shop) -> None:
    history = [event("item-a3", days_ago=9), event("item-b2", "view", days_ago=5), event("item-c1", days_ago=1)]
    sent = [history[1], history[2], history[0]]
    result, other = await shop.ask(history, top_k=40), await shop.ask(sent, top_k=40)
    assert scores(result) == pytest.approx(scores(other), abs=1e-4)
    for item, again in zip(result["items"], other["items"], strict=True):
        named = [history[reason["history_index"]] for reason in item["reasons"]]
        assert named == [sent[reason["history_index"]] for reason in again["reasons"]]


async def test_events_without_times_count_in_the_order_of_the_request(shop: Shop) -> None:
    names = ["item-a3", "item-b2", "item-c1"]
    result = [
        scores(await shop.ask([event(name, days_ago=day) for name, day in zip(names, days, strict=True)], top_k=40))
        for days in ((3, 2, 1), (400, 2, 1))
    ]
    assert result[0] != result[1]
    forward, back = [
        scores(await shop.ask([event(name) for name in order], top_k=40)) for order in (names, names[::-1])
    ]
    assert forward != back


async def test_the_newest_256_events_are_read(shop: Shop) -> None:
    older = [event("item-b2", days_ago=500 + day) for day in range(300)]
    newer = [event(f"item-{'abc'[day % 3]}{1 + day % 8}", days_ago=day) for day in range(256)]
    mixed = [each for pair in zip(older, newer, strict=False) for each in pair] + older[256:]
    result, alone = await shop.ask(mixed, top_k=40), await shop.ask(newer, top_k=40)
    assert (result["history_used"], result["history_dropped"]) == (256, 300)
    assert (alone["history_used"], alone["history_dropped"]) == (256, 0)
    assert scores(result) == pytest.approx(scores(alone), abs=1e-4)
    for item in result["items"]:
        assert all(mixed[reason["history_index"]] in newer for reason in item["reasons"])


async def test_ten_thousand_events_are_accepted_and_no_more(shop: Shop) -> None:
    result = await shop.ask([BOUGHT] * 10_000)
    assert (result["history_used"], result["history_dropped"]) == (256, 9_744)
    refused = await shop.send({"history": [BOUGHT] * 10_001})
    assert_problem(refused, 422, "invalid_request", "/inputs/history")
    assert "10000" in refused.json()["detail"]


async def test_a_low_rating_is_a_dislike(shop: Shop) -> None:
    options = [{"item_id": "item-a3"}]
    liked, rated_low, disliked = [
        (await shop.ask([event("item-c1", "view"), event("item-a3", **kind)], candidates=options))["items"][0]
        for kind in ({"kind": "rating", "value": 4.5}, {"kind": "rating", "value": 2.5}, {"kind": "dislike"})
    ]
    assert liked["score"] > disliked["score"]
    assert rated_low == disliked
    assert [reason["history_index"] for reason in liked["reasons"]][:1] == [1]
    assert 1 not in [reason["history_index"] for reason in disliked["reasons"]]
    neutral = (await shop.ask([event("item-c1", "view"), event("item-a3", "like")], candidates=options))["items"][0]
    assert neutral == liked
    (at_three,) = (await shop.ask([event("item-c1", "view"), event("item-a3", "rating", value=3)], candidates=options))[
        "items"
    ]
    assert at_three == liked


async def test_dislikes_alone_are_a_history(shop: Shop) -> None:
    result = await shop.ask([event("item-a3", "dislike")])
    assert (result["cold_start"], len(result["items"])) == (False, 10)


async def test_unknown_event_types_count_as_other(shop: Shop) -> None:
    made_up, other = [await shop.ask([event("item-a3", kind)]) for kind in ("wished for 愿望", "other")]
    assert made_up == other
    assert scores(await shop.ask([event("item-a3", "cart")])) != scores(other)


# Without a history.


async def test_without_a_history_popular_items_come_first(shop: Shop) -> None:
    result = await shop.ask([], top_k=12)
    popularity = {item.item_id: item.popularity for item in CATALOGUE_ITEMS}
    total = sum(popularity.values())
    assert result["cold_start"] is True
    assert [popularity[str(item_id)] for item_id in ids(result)] == sorted(popularity.values(), reverse=True)[:12]
    assert scores(result) == {item_id: pytest.approx(popularity[str(item_id)] / total) for item_id in ids(result)}
    assert [item["reasons"] for item in result["items"]] == [[]] * 12
    assert [item["rank"] for item in result["items"]] == list(range(1, 13))


async def test_without_a_history_candidates_are_ranked_by_popularity_and_texts_come_last(shop: Shop) -> None:
    candidates = [{"text": "new"}, {"item_id": "item-a1"}, {"item_id": "item-a4"}]
    result = await shop.ask([], candidates=candidates, top_k=5)
    assert [item["candidate_index"] for item in result["items"]] == [2, 1, 0]
    assert result["items"][2]["score"] == 0


# Excluded items.


async def test_items_of_the_history_can_be_excluded(shop: Shop) -> None:
    history = [BOUGHT, {"text": "bbbb", "event": "view"}, event("item-c1", "view")]
    remaining, out = [await shop.ask(history, top_k=40, exclude_history=chosen) for chosen in (False, True)]
    assert set(ids(remaining)) - set(ids(out)) == {"item-a3", "item-c1"}
    candidates = [{"item_id": "item-a3"}, {"text": "bbbb"}, {"text": "bb"}, {"item_id": "item-b1"}]
    result = await shop.ask(history, candidates=candidates, exclude_history=True)
    assert sorted(item["candidate_index"] for item in result["items"]) == [2, 3]


async def test_items_of_dropped_events_are_excluded_too(shop: Shop) -> None:
    history = [event("item-c1", days_ago=999)] + [event("item-a3", days_ago=1)] * 256
    result = await shop.ask(history, top_k=40, exclude_history=True)
    assert set(ids(result)) == {item.item_id for item in CATALOGUE_ITEMS} - {"item-c1", "item-a3"}


async def test_a_filter_selects_items_by_attributes(shop: Shop) -> None:
    result = await shop.ask([BOUGHT], top_k=40, filter={"price": {"lt": 3}, "kind": {"in": ["a", "上"]}})
    assert set(ids(result)) == {"item-a1", "item-a2", "item-上1", "item-上2"}
    candidates = [{"item_id": "item-b3"}, {"text": "aaa"}, {"item_id": "item-a8"}, {"item_id": "item-a3"}]
    result = await shop.ask([BOUGHT], candidates=candidates, filter={"kind": "a"}, exclude_history=True)
    assert {item["candidate_index"] for item in result["items"]} == {2}  # a text has no attributes
    cold = await shop.ask([], top_k=2, filter={"kind": "b"})
    assert ids(cold) == ["item-b4", "item-b3"]
    assert (await shop.ask([BOUGHT], filter={"price": {"lt": 0}}))["items"] == []


@pytest.mark.parametrize(
    ("conditions", "pointer"),
    [
        ({"colour": "red"}, "/inputs/filter/colour"),
        ({"price": {"below": 3}}, "/inputs/filter/price/below"),
        ({"price": {"lt": "cheap"}}, "/inputs/filter/price/lt"),
        ({"price": {}}, "/inputs/filter/price"),
        ({"price": [3]}, "/inputs/filter/price"),
        ({"a/b": 1}, "/inputs/filter/a~1b"),
    ],
)
async def test_a_bad_filter_has_a_pointer(shop: Shop, conditions: Any, pointer: str) -> None:
    assert_problem(await shop.send({"history": [BOUGHT], "filter": conditions}), 422, "invalid_request", pointer)
