from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.training.intent_batches import add_user_examples, load_training_data, read_intent_config
from models.training.trainer import ConfigError
from tests.support.tiny_dialogues import CONFIG, write_dialogue_sets


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dialogue_sets(tmp_path_factory.mktemp("sets"))


def test_user_examples_become_another_label_set(sets: Path, tmp_path: Path) -> None:
    file = tmp_path / "my.jsonl"
    rows = [{"text": f"{word} {number}", "label": word} for number in range(20) for word in ("open", "shut")]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = add_user_examples(CONFIG, "mine", file)
    training_data = load_training_data(config, sets)
    assert training_data.labels["mine"] == ("open", "shut")
    assert len(training_data.held_out["mine"]) == 4
    with pytest.raises(ConfigError, match="already"):
        add_user_examples(CONFIG, "talk", file)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["open", "shut"] * 9, "18 examples; at least 20"),
        (["open"] * 30, "1 intent; at least 2"),
        (
            [*["open"] * 28, "shut", "shut"],
            "my.jsonl, of which .*'shut' has one example",
        ),  # every tenth example is held out
    ],
)
def test_too_few_examples_are_refused_before_training(labels: list[str], message: str, tmp_path: Path) -> None:
    file = tmp_path / "my.jsonl"
    file.write_text("\n".join(json.dumps({"text": label, "label": label}) for label in labels), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        add_user_examples(CONFIG, "mine", file)


def test_the_shipped_configuration_can_be_read() -> None:
    config, student = read_intent_config(Path("models/configs/intent.toml"))
    assert {source.name for source in config.label_sets} == {"banking77", "clinc150", "dstc11", "smp_zh", "multidogo"}
    assert len(student.layers) == 8
