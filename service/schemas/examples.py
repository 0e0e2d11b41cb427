"""Requests and answers for the OpenAPI document. The shipped models gave the answers; long numbers are shortened."""

from __future__ import annotations

from typing import Any, Final

Example = dict[str, Any]

_TIMINGS: Final = {"tokenize": 0.68, "queue": 0.75, "infer": 3.73}
_RECOMMEND_DIGEST: Final = "e3fd52530f95a05a784eea515b57242b65acbf6beeb19e141a849115de5bde7a"

PROBLEM: Final[Example] = {
    "type": "urn:heed:problem:invalid_request",
    "title": "Invalid request",
    "status": 422,
    "detail": "Input should be a string or an object with a text.",
    "instance": "urn:heed:request:a19edce4-eb77-4a76-a4da-08f2bcffa712",
    "code": "invalid_request",
    "pointer": "/inputs/0",
}
"""The answer to `{"inputs": [7]}`."""

SENTIMENT_REQUEST: Final[Example] = {
    "inputs": [
        "Shares of Acme plunge after profit warning",
        {"text": "Stock A soars while B plunges", "entity": "A", "id": "n-17"},
        {"text": " ", "id": "n-18"},
    ]
}
FAILED_ITEM: Final[Example] = {
    "error": {
        "status": 422,
        "code": "empty_text",
        "title": "Empty text",
        "detail": "The text holds nothing that can be read.",
        "pointer": "/inputs/2/text",
    },
    "id": "n-18",
}
SENTIMENT_RESPONSE: Final[Example] = {
    "model": "sentiment",
    "version": "2.0.0",
    "results": [
        {
            "label": "negative",
            "scores": {"negative": 0.972, "neutral": 0.011, "positive": 0.016},
            "polarity": -0.956,
            "tokens": 13,
            "truncated": False,
            "language": "en",
            "id": None,
        },
        {
            "label": "positive",
            "scores": {"negative": 0.261, "neutral": 0.346, "positive": 0.393},
            "polarity": 0.132,
            "found": True,
            "tokens": 14,
            "truncated": False,
            "language": "en",
            "id": "n-17",
        },
        FAILED_ITEM,
    ],
    "timings_ms": _TIMINGS,
}

INTENT_REQUEST: Final[Example] = {
    "inputs": [
        "where is my card?",
        {
            "turns": [
                {"speaker": "customer", "text": "I lost a card"},
                {"speaker": "agent", "text": "Which one?"},
                {"speaker": "customer", "text": "the blue one"},
            ],
            "id": "c-9",
        },
    ],
    "label_set": "banking77",
    "top_k": 2,
}
INTENT_RESPONSE: Final[Example] = {
    "model": "intent",
    "version": "1.2.0",
    "results": [
        {
            "intent": "card_arrival",
            "confidence": 0.874,
            "out_of_scope": False,
            "out_of_scope_score": 0.89,
            "ranking": [
                {"intent": "card_arrival", "confidence": 0.874},
                {"intent": "lost_or_stolen_card", "confidence": 0.065},
            ],
            "turns_used": 1,
            "turns_dropped": 0,
            "tokens": 7,
            "truncated": False,
            "language": "en",
            "id": None,
        },
        {
            "intent": None,
            "confidence": 0.106,
            "out_of_scope": True,
            "out_of_scope_score": 0.996,
            "ranking": [
                {"intent": "order_physical_card", "confidence": 0.106},
                {"intent": "getting_spare_card", "confidence": 0.087},
            ],
            "turns_used": 3,
            "turns_dropped": 0,
            "tokens": 17,
            "truncated": False,
            "language": "en",
            "id": "c-9",
        },
    ],
    "label_set": "banking77",
    "timings_ms": _TIMINGS,
}

REPLIES_REQUEST: Final[Example] = {
    "turns": [{"speaker": "customer", "text": "I need a hotel in the north of the city"}],
    "candidates": [
        "Thank you and goodbye.",
        "Do you have a price range in mind?",
        "Your account balance is 800 in credit.",
    ],
    "top_k": 2,
}
REPLIES_RESPONSE: Final[Example] = {
    "model": "intent",
    "version": "1.2.0",
    "results": [
        {"index": 1, "text": "Do you have a price range in mind?", "score": 0.155},
        {"index": 0, "text": "Thank you and goodbye.", "score": 0.0003},
    ],
    "no_good_reply": False,
    "turns_used": 1,
    "turns_dropped": 0,
    "truncated": False,
    "language": "en",
    "timings_ms": _TIMINGS,
}

RECOMMEND_REQUEST: Final[Example] = {
    "inputs": {
        "id": "u-17",
        "history": [
            {"item_id": "22699", "event": "purchase", "at": "2011-11-03T10:00:00Z"},
            {"text": "Regency cakestand 3 tier", "event": "view", "at": "2011-11-04T09:30:00Z"},
        ],
        "filter": {"price": {"lt": 5}},
        "exclude_history": True,
        "top_k": 2,
    }
}
CANDIDATES_REQUEST: Final[Example] = {
    "inputs": [
        {
            "history": [
                {"item_id": "22423", "event": "purchase"},
                {"item_id": "22699", "event": "rating", "value": 4.5},
            ],
            "candidates": [{"item_id": "22138"}, {"text": "Baking set 9 piece retrospot"}],
        }
    ]
}
RECOMMEND_RESPONSE: Final[Example] = {
    "model": "recommend",
    "version": "1.2.0",
    "results": [
        {
            "items": [
                {
                    "rank": 1,
                    "item_id": "22697",
                    "candidate_index": None,
                    "text": "Green Regency Teacup And Saucer",
                    "score": 0.181,
                    "reasons": [{"history_index": 0, "weight": 0.883}],
                },
                {
                    "rank": 2,
                    "item_id": "22698",
                    "candidate_index": None,
                    "text": "Pink Regency Teacup And Saucer",
                    "score": 0.179,
                    "reasons": [{"history_index": 0, "weight": 0.847}],
                },
            ],
            "catalogue": "online_retail",
            "cold_start": False,
            "history_used": 2,
            "history_dropped": 0,
            "history_skipped": 0,
            "candidates_skipped": 0,
            "candidates_repeated": 0,
            "truncated": False,
            "id": "u-17",
        }
    ],
    "timings_ms": _TIMINGS,
}

EDIT_REQUEST: Final[Example] = {
    "items": [
        {"item_id": "t-1", "text": "Red retrospot tea cups", "attributes": {"price": 4.95, "colour": "red"}},
        {"item_id": "t-3", "text": "红色波点茶杯", "popularity": 12},
    ],
    "remove": ["t-2"],
}
CATALOGUE: Final[Example] = {"name": "online_retail", "count": 3643, "version": 1, "digest": _RECOMMEND_DIGEST}
CATALOGUES: Final[Example] = {"catalogues": [CATALOGUE]}
EDIT_RESPONSE: Final[Example] = {
    "model": "recommend",
    "version": "1.2.0",
    "results": [
        {"item_id": "t-1", "outcome": "added", "truncated": False},
        {"item_id": "t-3", "outcome": "added", "truncated": False},
        {"item_id": "t-2", "outcome": "unchanged", "truncated": None},
    ],
    "catalogue": CATALOGUE,
    "timings_ms": _TIMINGS,
}

MODELS: Final[Example] = {
    "models": [
        {
            "name": "sentiment",
            "version": "2.0.0",
            "task": "sentiment",
            "labels": ["negative", "neutral", "positive"],
            "label_sets": {},
            "reply_sets": [],
            "languages": ["en", "zh"],
            "digest": "f1bdf9bcb44b5cef07cc070c53399771569248b6336fed2c35bc5b5bf899529b",
            "base": "multilingual-e5-small-zh-en",
            "limits": {"max_tokens": 512, "max_inputs": 256, "max_body_bytes": 2_097_152},
            "metrics": [
                {
                    "dataset": "sentfin",
                    "language": "en",
                    "name": "accuracy",
                    "value": 0.8742,
                    "command": "heed evaluate --bundle models/bundles/sentiment --data DATA",
                }
            ],
        }
    ]
}
HEALTH: Final[Example] = {"status": "ok"}
METRICS: Final = """\
# TYPE heed_requests_total counter
heed_requests_total{route="/v1/sentiment",status="200"} 2.0
# TYPE heed_queue_depth gauge
heed_queue_depth{task="sentiment"} 0.0
"""
