"""Replies over HTTP, with a real tiny bundle in this process."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from models.prediction.reply_ranker import ReplyRanker, ReplySet, save_replies
from models.runtime.offline import open_text_encoder
from service.schemas.intent import RepliesResponse
from tests.support.intent_app import AGENT, CUSTOMER, Intents, turn
from tests.support.service_app import assert_problem

pytestmark = pytest.mark.anyio


async def test_candidates_are_ranked(intents: Intents) -> None:
    candidates = ["aaaa", "bbbb", "股票上涨", "1234"]
    answer = await intents.replies(turns=[turn(CUSTOMER, "hello"), turn(AGENT, "aaaa")], candidates=candidates, top_k=3)
    assert answer.status_code == 200, answer.text
    RepliesResponse.model_validate_json(answer.content)
    body = answer.json()
    scores = [result["score"] for result in body["results"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert all(candidates[result["index"]] == result["text"] for result in body["results"])
    assert body["turns_used"] == 2
    assert body["no_good_reply"] is (scores[0] < intents.registry.ranker.min_score)
    for threshold, none_good in ((0, False), (1, True)):
        again = await intents.replies(turns=[turn(CUSTOMER, "hello")], candidates=candidates, threshold=threshold)
        assert again.json()["no_good_reply"] is none_good


async def test_many_replies_are_scored_in_a_thread_with_the_same_scores(
    intents: Intents, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"turns": [turn(CUSTOMER, "hello")], "candidates": ["good bye", "hello there", "what"]}
    inline = (await intents.replies(**options)).json()["results"]
    scoring: list[str] = []
    scores = ReplyRanker.score_replies

    def watched(self: ReplyRanker, *arguments: Any) -> Any:
        scoring.append(threading.current_thread().name)
        return scores(self, *arguments)

    monkeypatch.setattr(ReplyRanker, "score_replies", watched)
    monkeypatch.setattr("service.api.replies.MAX_INLINE_REPLIES", 2)
    assert (await intents.replies(**options)).json()["results"] == inline
    assert scoring != [threading.main_thread().name]


@pytest.mark.slow
async def test_a_reply_set_gets_the_scores_of_the_same_candidates(intents: Intents) -> None:
    texts = tuple(f"{letter * 5} {index}" for letter in "abcdef" for index in range(140))
    ranker, reader = intents.registry.ranker, open_text_encoder(intents.bundle)
    replies = ReplySet(
        "support", intents.bundle.encoder_digest, texts, ranker.project_replies(reader.encode_texts(texts))
    )
    save_replies(replies, intents.folder / "support.replies.safetensors")
    async with asyncio.timeout(60):
        while "support" not in intents.registry.reply_sets:
            await asyncio.sleep(0.05)
    turns = [turn(CUSTOMER, "bbb please")]
    named, sent = [
        (await intents.replies(turns=turns, top_k=7, **more)).json()["results"]
        for more in ({"reply_set": "support"}, {"candidates": texts})
    ]
    assert [result["score"] for result in named] == pytest.approx([result["score"] for result in sent], abs=1e-4)
    assert_problem(await intents.replies(turns=turns, reply_set=""), 422, "invalid_request", "/reply_set")
    refused = await intents.replies(turns=turns, reply_set="other")
    assert_problem(refused, 404, "not_found", "/reply_set")
    assert "support" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"candidates": ["a"]}, "/turns"),
        ({"turns": [turn(AGENT, "a")], "candidates": ["a"]}, ""),
        ({"turns": [turn(CUSTOMER, "a")]}, ""),
        ({"turns": [turn(CUSTOMER, "a")], "candidates": ["a"], "reply_set": "b"}, ""),
        ({"turns": [turn(CUSTOMER, "a")], "candidates": []}, "/candidates"),
        ({"turns": [turn(CUSTOMER, "a")], "candidates": [str(n) for n in range(5000)]}, "/candidates"),
        ({"turns": [turn(CUSTOMER, "a")], "candidates": ["a", " "]}, "/candidates/1"),
        ({"turns": [turn(CUSTOMER, "a")], "candidates": ["a", "b", "a"]}, ""),
        ({"turns": [turn(CUSTOMER, " ")], "candidates": ["a"]}, "/turns/0/text"),
    ],
)
async def test_a_bad_request_for_replies_has_a_pointer(intents: Intents, body: Any, pointer: str) -> None:
    assert_problem(await intents.client.post("/v1/replies", json=body), 422, "invalid_request", pointer)


async def test_duplicate_candidates_are_named(intents: Intents) -> None:
    answer = await intents.replies(turns=[turn(CUSTOMER, "a")], candidates=["a", "b", "a"])
    assert "Candidates 0 and 2 are the same" in answer.json()["detail"]
