"""Tiny data sets of dialogues, and a configuration that trains on them in seconds."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.data.dialogues import LabelSet, ReplySet
from models.training.intent_batches import IntentConfig
from tests.support.tiny_networks import tiny_config

WORDS = {"pay": "pay it", "stop": "stop it", "find": "find it"}
CONFIG = tiny_config(
    IntentConfig,
    seed=3,
    epochs=8,
    unrelated=0.1,
    compiled=False,
    label_sets=(
        LabelSet("wishes", "wishes", "texts", "en", "MIT", outside="oos"),
        LabelSet("talk", "talk", "multidogo", "en", "MIT"),
    ),
    reply_sets=(ReplySet("star", "star", "star", "en", "MIT"),),
)


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_dialogue_sets(folder: Path) -> Path:
    """Write the sets that CONFIG names into the folder, and return it."""
    rng = random.Random(4)

    def name() -> str:
        return "".join(rng.choices("BCDEGHKMPQ", k=4))

    for split, count in (("train", 90), ("validation", 45)):
        wishes = [
            {"text": f"{name()} {word}", "label": label} for label, word in WORDS.items() for _ in range(count // 3)
        ]
        out_of_scope = [{"text": f"{name()} {name()} {name()}", "label": "oos"} for _ in range(count // 9)]
        write_rows(folder / "wishes" / f"{split}.jsonl.gz", [*wishes, *out_of_scope])
        # The meaning of "it" depends on the turn before.
        talk = [
            {
                "domain": domain,
                "turns": [
                    {"speaker": "customer", "text": f"{name()} {word}", "intents": [intent]},
                    {"speaker": "customer", "text": "it", "intents": [f"again{intent}"]},
                    {"speaker": "customer", "text": "", "intents": ["contentonly"]},
                    {"speaker": "customer", "text": f"{name()}", "intents": ["contentonly", "thankyou"]},
                ],
            }
            for domain, intent, word in (("bank", "pay", "pay it"), ("shop", "stop", "stop it"))
            for _ in range(count // 3)
        ]
        write_rows(folder / "talk" / f"{split}.jsonl.gz", talk)
        star = [
            {
                "tasks": ["shop"],
                "turns": [
                    {"speaker": "customer", "text": f"{name()} {word}"},
                    {"speaker": "agent", "text": reply, "action": action, "options": ["a_pay", "a_stop", "gone"]},
                    {"speaker": "agent", "text": "hm"},
                ],
            }
            for word, reply, action in (("pay it", "I pay it", "a_pay"), ("stop it", "I stop it", "a_stop"))
            for _ in range(count // 3)
        ]
        write_rows(folder / "star" / f"{split}.jsonl.gz", star)
    templates = {"shop": {"a_pay": "I pay {amount:s} now", "a_stop": "I stop it"}, "other": {"a_pay": "never"}}
    (folder / "star" / "response_templates.json").write_text(json.dumps(templates), encoding="utf-8")
    return folder
