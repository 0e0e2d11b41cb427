"""Compiles the load generator, and runs it."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.bench.chaos.generator.results import Report, parse_report

MISSING = "gcc, which compiles the load generator, is not installed: apt-get install gcc libc6-dev"
SOURCES = sorted((Path(__file__).parent / "source").glob("*.c"))
_FLAGS = ("-std=c11", "-O2")
_COMPILE_ERROR = re.compile(r"\.[ch]:.* error: ")
_MARGIN_S = 60.0  # beyond the planned end of a run


class GeneratorError(Exception):
    """The load generator cannot be compiled, or it failed. The message is a single line."""


@dataclass(frozen=True, slots=True)
class Load:
    """What to send: phases of arrivals per second and seconds, and the requests that are sent in turn."""

    port: int
    phases: Sequence[tuple[float, float]]
    path: str
    bodies: Sequence[bytes] = ()  # none holds a line feed; without any, requests have no body
    method: str = "POST"
    headers: Sequence[str] = ("Content-Type: application/json",)
    host: str = "127.0.0.1"
    gaps: Literal["constant", "poisson"] = "constant"
    seed: int = 1
    give_up_s: float = 1.0
    connections: int = 10_000
    fresh: bool = False  # open a connection for each request
    window_s: float = 0.1

    @property
    def seconds(self) -> float:
        """The time until the last client has left, at most."""
        return sum(seconds for _, seconds in self.phases) + self.give_up_s


class RunningLoad:
    """A load that is under way."""

    def __init__(self, command: Sequence[str], load: Load) -> None:
        self._ends_s = load.seconds + _MARGIN_S
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self._process.stdin is not None
        # The generator reads all bodies before it sends the first. A wrong option ends it before that.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"".join(body + b"\n" for body in load.bodies))
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdin = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def report(self) -> Report:
        """Wait for the end of the load. Raise GeneratorError."""
        try:
            output, errors = self._process.communicate(timeout=self._ends_s)
        except subprocess.TimeoutExpired:
            self.stop()
            raise GeneratorError(f"open_loop: no report after {self._ends_s:.0f} s") from None
        if self._process.returncode != 0:
            raise GeneratorError(_last_line(errors) or f"open_loop: ended with {self._process.returncode}")
        return parse_report(output.decode())

    def stop(self) -> None:
        """End the load without a report."""
        self._process.kill()
        self._process.communicate()


def compile_program(folder: Path) -> Path:
    """Compile the generator into a folder, in about a second. Raise GeneratorError."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise GeneratorError(MISSING)
    program = folder / "open_loop"
    command = [compiler, *_FLAGS, "-o", str(program), *map(str, SOURCES), "-lm"]
    done = subprocess.run(command, capture_output=True)
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").splitlines() or [f"gcc: ended with {done.returncode}"]
        raise GeneratorError(next((line for line in lines if _COMPILE_ERROR.search(line)), lines[0]))
    return program


def command_of(program: Path, load: Load) -> list[str]:
    """Return the command line. Bodies are read from standard input."""
    if any(b"\n" in body for body in load.bodies):
        raise GeneratorError("open_loop: a body holds a line feed, which ends a body")
    options = {
        "host": load.host,
        "port": load.port,
        "phases": ",".join(f"{rate}:{seconds}" for rate, seconds in load.phases),
        "method": load.method,
        "path": load.path,
        "gaps": load.gaps,
        "seed": load.seed,
        "give-up-ms": round(load.give_up_s * 1000),
        "connections": load.connections,
        "window-ms": round(load.window_s * 1000),
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    words += [f"--header={line}" for line in load.headers]
    words += ["--bodies=/dev/stdin"] * bool(load.bodies) + ["--fresh"] * load.fresh
    return [str(program), *words]


def start(program: Path, load: Load) -> RunningLoad:
    """Start a load, and return while it runs. Raise GeneratorError."""
    return RunningLoad(command_of(program, load), load)


def run(program: Path, load: Load) -> Report:
    """Run a load to its end. Raise GeneratorError."""
    return start(program, load).report()


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
