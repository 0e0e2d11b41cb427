"""`heed tune` prints settings for a shell, errors of one line, and ends at a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

HEED = str(Path(sys.executable).parent / "heed")


def run_tune(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HEED, "tune", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **(environment or {})},
    )


@pytest.mark.slow
def test_the_command_prints_settings_for_a_shell_and_the_rest_to_stderr(tiny: Path, tmp_path: Path) -> None:
    done = run_tune("--bundle", str(tiny), "--seconds", "0.1", "--cores", "1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition("=")[0] for line in lines] == [
        "HEED_REPLICAS",
        "HEED_THREADS",
        "HEED_BATCH_TOKENS",
        "HEED_BATCH_ITEMS",
    ]
    assert "tokens/s" in done.stderr
    (tmp_path / "heed.env").write_text(done.stdout)
    shell = f"set -a; . {tmp_path}/heed.env; HEED_REPLICAS=7; exec {sys.executable} -c '{READ}'"
    shell_run = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)
    values = dict(line.split("=") for line in lines)
    assert shell_run.stdout.split() == [
        "7",
        values["HEED_THREADS"],
        values["HEED_BATCH_TOKENS"],
        values["HEED_BATCH_ITEMS"],
    ]


READ = (
    "from service.settings import load_settings; s = load_settings();"
    " print(s.replicas, s.threads, s.batch_tokens, s.batch_items)"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "environment", "code", "message"),
    [
        (["--bundle", "/nowhere"], {}, 1, "no bundle at /nowhere"),
        (["--cores", "4096"], {}, 2, "4096 cores: this process may use"),
        ([], {"HEED_BATCH_ITEMS": "0"}, 2, "HEED_BATCH_ITEMS"),
    ],
)
def test_an_error_of_the_command_is_one_line(
    arguments: list[str], environment: dict[str, str], code: int, message: str
) -> None:
    done = run_tune(*arguments, environment=environment)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes(tiny: Path, signal_number: signal.Signals) -> None:
    process = subprocess.Popen(
        [HEED, "tune", "--bundle", str(tiny), "--seconds", "60", "--cores", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    children: list[psutil.Process] = []
    while not children:
        children = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.05)
    time.sleep(1.5)  # by now it measures, unless the machine is slow
    process.send_signal(signal_number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "heed: stopped"
    assert not [child for child in children if child.is_running()]
