"""What each lever is worth: Heed as it is beside Heed with exactly one of them off, on the same machine and texts.

Run with `make bench-ablation DATA=folder`; the folder holds data sets as for `heed evaluate`. For each lever both
servers are up at once and are asked in turn, so that a machine whose speed changes by the minute changes it for both.
Writes the report after every lever, so an interrupted run leaves those that it finished. A lever is refused, and not
measured under a wrong name, when a replica of the server was not changed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from http.client import HTTPException
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import SubprocessError
from typing import TypeVar

import psutil

from models.bundle import SHIPPED, Bundle, load_bundle
from models.text.tokenizer import Tokenizer
from tests.bench.ablation import patches, report
from tests.bench.ablation.levers import LEVERS, Lever
from tests.bench.harness import versions
from tests.bench.harness.closed_loop import MISSING, LoadError, wrk_version
from tests.bench.harness.processes import NotStartedError, adopt_orphans
from tests.bench.serving import expected_labels, texts
from tests.bench.serving.contenders import Contender, Machine
from tests.bench.serving.report import About, line
from tests.bench.serving.session import CHECKED, Measurement, Questions, Turn
from tests.bench.serving.workloads import WORKLOADS, Workload, chosen
from tests.support.local_service import command_of, free_port

_TEXTS = 512
_FAILURES = (NotStartedError, LoadError, OSError, ValueError, HTTPException, SubprocessError)
_CORES = len(os.sched_getaffinity(0))
_WORKLOADS = ("short-1", "short-64", "mixed-64")
_BACKLOG_S = 2.0  # of the last workload, before idling is measured

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Found:
    measurements: list[Measurement] = field(default_factory=list)
    idle: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: list[str] = field(default_factory=list)


def main() -> None:
    given = _options()
    if wrk_version() is None:
        raise SystemExit(MISSING)
    try:
        bundle = load_bundle(given.bundle)
        sets = texts.read(given.data, Tokenizer(bundle.tokenizer, bundle.max_tokens), _TEXTS)
        given.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise SystemExit(f"bench-ablation: {error}") from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a turn that is cut off still ends its processes
    _run(given, bundle, Questions(sets, expected_labels.expected(bundle, sets["short"].texts[:CHECKED])))


def _run(given: argparse.Namespace, bundle: Bundle, questions: Questions) -> None:
    levers = [lever for lever in LEVERS if lever.name in given.levers]
    bases = {lever.of.name: lever.of for lever in levers}
    found = Found()
    about = About(
        model=f"{bundle.name} {bundle.version}, {bundle.graph.name}",
        seconds=given.seconds,
        texts=[one.described() for one in questions.sets.values()],
        versions=versions.found(list(bases.values()), Path()),
        failures=found.failures,
    )
    for place, lever in enumerate(levers):
        try:
            _compare(lever, place * given.rounds, given, questions, found)
        except _FAILURES as error:
            found.failures.append(f"without {lever.title}: {error}")
            print(f"{lever.name}: {error}", flush=True)
        raw = {"measurements": [asdict(one) for one in found.measurements], "idle_cores": found.idle}
        (given.out / "measurements.json").write_text(json.dumps(raw, indent=1))
        written = report.markdown(about, levers, given.rounds, found.measurements, found.idle)
        (given.out / "report.md").write_text(written, encoding="utf-8")
    print(f"Wrote {given.out / 'report.md'}")


def _compare(lever: Lever, before: int, given: argparse.Namespace, questions: Questions, found: Found) -> None:
    """Both servers' measurements, in rounds numbered from `before` on; raises _FAILURES."""
    workloads = [one for _ in range(given.rounds) for one in chosen(given.workloads, of_peer=False)]
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder)
        with (
            _side(lever.of, None, marks, workloads, given, questions) as on,
            _side(lever.without(marks), lever, marks, workloads, given, questions) as off,
        ):
            for place in range(len(workloads)):
                number = before + 1 + place * given.rounds // len(workloads)
                # Forth and back, so that a machine that grows faster or slower does not favour the same one every time.
                for side in (on, off) if number % 2 else (off, on):
                    measurement = replace(side.next(), round=number)
                    found.measurements.append(measurement)
                    print(line(measurement), flush=True)
            for contender, side in ((lever.of.name, on), (lever.name, off)):
                found.idle[contender].append(side.idle_cores())


@dataclass(frozen=True, slots=True)
class Side:
    """A server, and the process above it that measures when it is told to."""

    told: Connection

    def next(self) -> Measurement:
        """Of the next workload; raises NotStartedError with what went wrong there."""
        return self._asked(Measurement)

    def idle_cores(self) -> float:
        """Once all workloads are through."""
        return self._asked(float)

    def _asked(self, kind: type[Answer]) -> Answer:
        self.told.send(True)
        answer = self.told.recv()
        if not isinstance(answer, kind):
            raise NotStartedError(str(answer))
        return answer


@contextmanager
def _side(
    contender: Contender,
    lever: Lever | None,
    marks: Path,
    workloads: Sequence[Workload],
    given: argparse.Namespace,
    questions: Questions,
) -> Iterator[Side]:
    turn = Turn(contender, Machine(given.bundle, Path(), free_port(), _CORES), questions, given.seconds, 0)
    ours, theirs = Pipe()
    log = given.out / f"{lever.name if lever else contender.name}.log"
    # Forked: whatever runs below it is its own server's, and what it needs is there already.
    process = get_context("fork").Process(target=_measure, args=(theirs, turn, lever, marks, workloads, log))
    process.start()
    theirs.close()
    try:
        yield Side(ours)
    finally:
        with suppress(OSError):  # it may have ended
            ours.send(False)
        process.join()


def _measure(
    told: Connection, turn: Turn, lever: Lever | None, marks: Path, workloads: Sequence[Workload], log: Path
) -> None:
    """One workload each time that True is received, then what the server uses when idle; it ends with False."""
    adopt_orphans()
    with closing(turn.serve(workloads, log)) as measurements:
        try:
            for _ in workloads:
                if not told.recv():
                    return
                measurement = next(measurements)
                if lever is not None:
                    refuse_unpatched(lever, marks, replicas())
                told.send(measurement)
            while told.recv():
                told.send(_idle_cores(turn.seconds))
        except _FAILURES as error:
            told.send(str(error))


def replicas() -> list[int]:
    """Process ids of the replicas of the one server that is up."""
    return [process.pid for process in _server() if "ServeReplica" in command_of(process)]


def refuse_unpatched(lever: Lever, marks: Path, process_ids: Sequence[int]) -> None:
    """Raises NotStartedError unless each of these processes has turned the lever off."""
    for module in lever.changes:
        missing = [one for one in process_ids if not patches.mark(marks, module, one).exists()]
        if missing or not process_ids:
            raise NotStartedError(f"{lever.name} is not off: {module} was not changed in {missing or 'any replica'}")


def _idle_cores(seconds: float) -> float:
    time.sleep(_BACKLOG_S)
    before_s = _cpu_s()
    time.sleep(seconds)
    return (_cpu_s() - before_s) / seconds


def _cpu_s() -> float:
    used_s = 0.0
    for process in _server():
        with suppress(psutil.Error):
            used_s += sum(process.cpu_times()[:2])
    return used_s


def _server() -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process().children(recursive=True)
    return found


def _options() -> argparse.Namespace:
    names, asked = [one.name for one in LEVERS], [one.name for one in WORKLOADS]
    parser = argparse.ArgumentParser(prog="bench-ablation", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each data set")
    parser.add_argument("--bundle", type=Path, default=SHIPPED, help="folder of the model")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-ablation"), help="folder of the report")
    parser.add_argument("--rounds", type=int, default=6, help="of each lever")
    parser.add_argument("--seconds", type=int, default=3, help="for each workload")
    parser.add_argument("--levers", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--workloads", nargs="+", choices=asked, default=_WORKLOADS, metavar="NAME", help=", ".join(asked)
    )
    given = parser.parse_args()
    # Servers run in another folder.
    for name in ("bundle", "out"):
        setattr(given, name, getattr(given, name).absolute())
    return given


if __name__ == "__main__":
    main()
