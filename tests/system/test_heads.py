"""A team's intents and replies in the running service: from files to answers, and changes under load."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from models.bundle import load_bundle as load_bundle
from models.prediction.intent_head import save_head
from models.runtime.offline import open_text_encoder
from tests.support.local_service import COMMAND, Reply, Service, free_port, load, post_all
from tests.support.tiny_bundle import tiny_head, tiny_intent_bundle

TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def intents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_intent_bundle(tmp_path_factory.mktemp("intents"))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data_dir")


@pytest.fixture(scope="module")
def serving(bundle: Path, intents: Path, data_dir: Path) -> Iterator[Service]:
    environment = {"HEED_INTENT_BUNDLE": str(intents), "HEED_DATA_DIR": str(data_dir), "HEED_LABEL_SET": "letters"}
    started = Service(bundle, free_port(), environment=environment)
    yield started
    started.stop()


def heed(*arguments: object) -> str:
    done = subprocess.run([COMMAND[0], *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def intents_of(service: Service, name: str) -> set[frozenset[str]]:
    """Return the label set's intents in 32 answers, which reach both replicas. They are empty if it is unknown."""
    replies = post_all(service.port, [{"inputs": "xxx", "label_set": name, "top_k": 9}] * 32, 8, "/v1/intent")
    assert {reply.status for reply in replies} <= {200, 404}
    rankings = [reply.json["results"][0]["ranking"] if reply.status == 200 else [] for reply in replies]
    return {frozenset(entry["intent"] for entry in ranking) for ranking in rankings}


def test_a_file_of_examples_becomes_a_label_set(
    serving: Service, intents: Path, data_dir: Path, tmp_path: Path
) -> None:
    rows = [{"text": letter * length, "label": f"intent-{letter}"} for letter in "klmn" for length in range(3, 11)]
    examples = tmp_path / "my.jsonl"
    examples.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    head = tmp_path / "my-team.head.safetensors"
    output = heed("train", "intent", "--label-set", "my-team", "--data", examples, "--out", head, "--bundle", intents)
    assert "4 intents, cross-validated: accuracy" in output
    options = ("--data-dir", data_dir, "--bundle", intents)
    assert "my-team: 4 intents" in heed("heads", "add", head, *options)
    assert [line.split(":")[0] for line in heed("heads", "list", *options).splitlines()] == [
        "digits",
        "letters",
        "my-team",
    ]
    wait_until(lambda: intents_of(serving, "my-team") == {frozenset(f"intent-{letter}" for letter in "klmn")})
    answer = serving.client.post({"inputs": "mmmm", "label_set": "my-team"}, "/v1/intent").json
    assert answer["results"][0]["ranking"][0]["intent"] == "intent-m"
    heed("heads", "remove", "my-team", "--data-dir", data_dir)
    wait_until(lambda: intents_of(serving, "my-team") == {frozenset()})


def test_replies_are_added_and_ranked(serving: Service, intents: Path, data_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "replies.txt"
    file.write_text("aaaa\nbbbb\n股票上涨\n", encoding="utf-8")
    options = ("--data-dir", data_dir, "--bundle", intents)
    assert "support: 3 replies" in heed("replies", "add", "support", file, *options)
    assert heed("replies", "list", *options).strip() == "support: 3 replies"
    body = {"turns": [{"speaker": "customer", "text": "bbb"}], "reply_set": "support"}
    wait_until(lambda: {reply.status for reply in post_all(serving.port, [body] * 32, 8, "/v1/replies")} == {200})
    answer = serving.client.post(body, "/v1/replies").json
    assert {reply["text"] for reply in answer["results"]} == {"aaaa", "bbbb", "股票上涨"}
    heed("replies", "remove", "support", "--data-dir", data_dir)


def test_twenty_changes_under_load_fail_no_request_and_mix_no_label_sets(
    serving: Service, intents: Path, data_dir: Path
) -> None:
    bundle = load_bundle(intents)
    heads = [tiny_head("mine", starts, open_text_encoder(bundle), bundle.encoder_digest) for starts in ("uv", "xyz")]
    path = data_dir / "mine.head.safetensors"

    def content(index: int) -> object:
        return {"inputs": [f"aaa {index}", "xxxx"], "label_set": "letters" if index % 2 else "mine", "top_k": 5}

    with load(serving.port, 32, content, "/v1/intent") as outcomes:
        for index in range(20):
            if index % 4 == 3:
                path.unlink()
                wait_until(lambda: intents_of(serving, "mine") == {frozenset()})
            else:
                head = heads[index % 2]
                save_head(head, path)
                wait_until(lambda head=head: intents_of(serving, "mine") == {frozenset(head.labels)})  # type: ignore[misc]
    assert len(outcomes) > 500
    replies = [reply for reply in outcomes if isinstance(reply, Reply)]
    assert len(replies) == len(outcomes)
    answered = {
        (reply.json.get("label_set"), frozenset(entry["intent"] for entry in result["ranking"]))
        for reply in replies
        if reply.status == 200
        for result in reply.json["results"]
    }
    assert answered == {("letters", frozenset("abc")), ("mine", frozenset("uv")), ("mine", frozenset("xyz"))}
    refused = [reply for reply in replies if reply.status != 200]
    assert {reply.status for reply in refused} == {404}  # only for the removed label set
    assert all(reply.json["pointer"] == "/label_set" for reply in refused)
