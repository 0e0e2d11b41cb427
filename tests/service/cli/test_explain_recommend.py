from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from models.bundle import Bundle
from service.cli.main import app

HISTORY = [
    {"item_id": "item-a3", "event": "purchase"},
    {"text": "手机 [b]x\x1b[31m", "event": "view"},
    {"item_id": "item-a3", "event": "cart"},
    {"item_id": "item-c1", "event": "dislike"},
]


@pytest.fixture
def explain(recommend_bundle: Bundle, tmp_path: Path) -> Any:
    def run(body: Any, *arguments: str) -> tuple[int, str]:
        file = tmp_path / "user.json"
        file.write_bytes(body if isinstance(body, bytes) else json.dumps(body).encode())
        command = ["explain", "recommend", str(file), "--bundle", str(recommend_bundle.path), *arguments]
        result = CliRunner().invoke(app, command)
        return result.exit_code, result.output

    return run


def test_the_items_of_a_history_are_shown_with_their_weights(explain: Any) -> None:
    code, shown = explain({"history": HISTORY, "target": "item-a3"})
    assert code == 0, shown
    first, *lines = shown.splitlines()
    assert first.startswith("item-a3 aaa: 0.")
    assert len(lines) == 5
    assert lines[0].startswith("+0.")
    assert lines[0].endswith("item-a3 aaa  purchase, cart")
    assert "\x1b" not in shown
    assert any("[b]x" in line for line in lines)
    assert lines[3].startswith("two_sided_occlusion: ")


def test_a_whole_body_names_the_method_and_an_option_wins(explain: Any) -> None:
    body = {"inputs": [{"history": HISTORY}], "method": "occlusion"}
    assert "occlusion: " in explain(body)[1]
    code, shown = explain(body, "--method", "attention", "--target", "item-c1")
    assert code == 0
    assert "attention: " in shown
    assert shown.startswith("item-c1 c: 0.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"history": []}, "at /history: Without a known item"),
        ({"history": [{"item_id": "nope", "event": "view"}]}, "at /history/0: The item of event 0"),
        ({"history": HISTORY, "target": "nope"}, "at /target: The target is not in letters"),
        ({"history": HISTORY, "catalogue": "nope"}, "/shelf"),
        ({"inputs": [{"history": HISTORY}] * 2}, "at /inputs: One user is explained at a time"),
        ({"inputs": {"history": HISTORY}, "method": "rollout"}, "at /method: "),
        ({"input": 3}, "at /input: There is no such field; the nearest is inputs."),
        (3, "Input should be"),
        (b"{", "EOF"),
        (b"\xff", "UTF-8"),
    ],
)
def test_what_cannot_be_explained_is_refused_with_one_line(
    explain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: Any, said: str
) -> None:
    monkeypatch.setenv("HEED_DATA_DIR", str(tmp_path / "shelf"))
    code, shown = explain(body)
    assert (code, shown.count("\n")) == (2, 1), shown
    assert said in shown


def test_a_model_of_another_task_is_refused(explain: Any) -> None:
    code, shown = explain({"history": HISTORY}, "--bundle", "models/bundles/sentiment")
    assert (code, shown.count("\n")) == (2, 1)
    assert "is a model of sentiment" in shown
