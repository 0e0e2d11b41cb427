"""Requests and answers of explanations, as in `examples`."""

from __future__ import annotations

from typing import Any, Final

Example = dict[str, Any]

_TIMINGS: Final = {"queue": 0.04, "explain": 64.57}

EXPLAIN_SENTIMENT_REQUEST: Final[Example] = {"inputs": "Shares plunge after profit warning"}
ATTENTION_REQUEST: Final[Example] = {
    "inputs": {"text": "A beats B", "entity": "A", "id": "n-17"},
    "method": "attention",
    "layers": [7],
    "reduce": "mean",
}
EXPLAIN_SENTIMENT_RESPONSE: Final[Example] = {
    "model": "sentiment",
    "version": "2.0.0",
    "results": [
        {
            "label": "negative",
            "scores": {"negative": 0.971, "neutral": 0.012, "positive": 0.017},
            "target": "negative",
            "words": [
                {"text": "Shares", "start": 0, "end": 6, "weight": -0.01, "is_entity": False},
                {"text": "plunge", "start": 7, "end": 13, "weight": 0.488, "is_entity": False},
                {"text": "after", "start": 14, "end": 19, "weight": 0.03, "is_entity": False},
                {"text": "profit", "start": 20, "end": 26, "weight": 0.065, "is_entity": False},
                {"text": "warning", "start": 27, "end": 34, "weight": 0.388, "is_entity": False},
            ],
            "read_span": {"start": 0, "end": 34},
            "method": "two_sided_occlusion",
            "signed": True,
            "tokens": 10,
            "truncated": False,
            "language": "en",
            "id": None,
        }
    ],
    "timings_ms": _TIMINGS,
}

EXPLAIN_INTENT_REQUEST: Final[Example] = {
    "inputs": {
        "turns": [
            {"speaker": "agent", "text": "How can I help?"},
            {"speaker": "customer", "text": "where is my card?"},
        ],
        "id": "c-9",
    },
    "label_set": "banking77",
}
EXPLAIN_INTENT_RESPONSE: Final[Example] = {
    "model": "intent",
    "version": "1.2.0",
    "results": [
        {
            "intent": "card_arrival",
            "out_of_scope": False,
            "out_of_scope_score": 0.928,
            "target": "card_arrival",
            "confidence": 0.807,
            "turns": [
                {
                    "turn": 0,
                    "weight": -0.036,
                    "words": [
                        {"text": "How", "start": 0, "end": 3, "weight": -0.009},
                        {"text": "can", "start": 4, "end": 7, "weight": -0.02},
                        {"text": "I", "start": 8, "end": 9, "weight": 0.013},
                        {"text": "help", "start": 10, "end": 14, "weight": -0.01},
                        {"text": "?", "start": 14, "end": 15, "weight": 0.015},
                    ],
                    "read_span": {"start": 0, "end": 15},
                },
                {
                    "turn": 1,
                    "weight": 0.836,
                    "words": [
                        {"text": "where", "start": 0, "end": 5, "weight": 0.245},
                        {"text": "is", "start": 6, "end": 8, "weight": 0.286},
                        {"text": "my", "start": 9, "end": 11, "weight": 0.224},
                        {"text": "card", "start": 12, "end": 16, "weight": 0.382},
                        {"text": "?", "start": 16, "end": 17, "weight": 0.002},
                    ],
                    "read_span": {"start": 0, "end": 17},
                },
            ],
            "turns_dropped": 0,
            "method": "two_sided_occlusion",
            "signed": True,
            "tokens": 15,
            "truncated": False,
            "language": "en",
            "id": "c-9",
        }
    ],
    "label_set": "banking77",
    "timings_ms": _TIMINGS,
}

EXPLAIN_REPLIES_REQUEST: Final[Example] = {
    "turns": [{"speaker": "customer", "text": "I need a hotel"}],
    "candidates": ["Goodbye.", "Do you have a price range in mind?"],
    "target": 1,
}
EXPLAIN_REPLIES_RESPONSE: Final[Example] = {
    "model": "intent",
    "version": "1.2.0",
    "results": [
        {
            "target": {"index": 1, "text": "Do you have a price range in mind?", "score": 0.436},
            "turns": [
                {
                    "turn": 0,
                    "weight": None,
                    "words": [
                        {"text": "I", "start": 0, "end": 1, "weight": -0.007},
                        {"text": "need", "start": 2, "end": 6, "weight": -0.039},
                        {"text": "a", "start": 7, "end": 8, "weight": -0.022},
                        {"text": "hotel", "start": 9, "end": 14, "weight": 0.375},
                    ],
                    "read_span": {"start": 0, "end": 14},
                }
            ],
            "turns_dropped": 0,
            "method": "two_sided_occlusion",
            "signed": True,
            "tokens": 6,
            "truncated": False,
            "language": "en",
        }
    ],
    "timings_ms": _TIMINGS,
}

EXPLAIN_RECOMMEND_REQUEST: Final[Example] = {
    "inputs": {
        "history": [
            {"item_id": "85099B", "event": "purchase"},
            {"item_id": "22423", "event": "purchase"},
            {"text": "red retrospot tea cups", "event": "view"},
        ],
        "target": "22138",
    }
}
EXPLAIN_RECOMMEND_RESPONSE: Final[Example] = {
    "model": "recommend",
    "version": "1.2.0",
    "results": [
        {
            "target": {
                "item_id": "22138",
                "candidate_index": None,
                "text": "Baking Set 9 Piece Retrospot",
                "score": 0.146,
            },
            "method": "two_sided_occlusion",
            "history": [
                {"history_indexes": [0], "item_id": "85099B", "text": "Jumbo Bag Red Retrospot", "weight": 0.007},
                {"history_indexes": [1], "item_id": "22423", "text": "Regency Cakestand 3 Tier", "weight": 0.009},
                {"history_indexes": [2], "item_id": None, "text": "red retrospot tea cups", "weight": 0.01},
            ],
            "catalogue": "online_retail",
            "history_used": 3,
            "history_dropped": 0,
            "history_skipped": 0,
            "truncated": False,
            "id": None,
        }
    ],
    "timings_ms": _TIMINGS,
}
