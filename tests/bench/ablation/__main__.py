"""What each lever is worth: Heed as it is, and with exactly one of them off, in turn on the same machine and texts.

Run with `make bench-ablation DATA=folder`; the folder holds data sets as for `heed evaluate`. Writes the report after
every round, so an interrupted run leaves those that it finished. A lever is refused, and not measured under a wrong
name, when a replica of the server was not changed.
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
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from http.client import HTTPException
from pathlib import Path
from subprocess import SubprocessError

import psutil

from models.bundle import SHIPPED, Bundle, load
from models.tokens import Tokenizer
from tests.bench.ablation import patches, report
from tests.bench.ablation.levers import LEVERS, Lever
from tests.bench.serve import answers, texts, versions
from tests.bench.serve.contenders import Contender, Machine
from tests.bench.serve.load import MISSING, LoadError, wrk_version
from tests.bench.serve.report import About, line
from tests.bench.serve.tree import NotStartedError, adopt_orphans
from tests.bench.serve.turn import CHECKED, Measurement, Questions, Turn
from tests.bench.serve.workloads import WORKLOADS, chosen
from tests.cluster.running import command_of, free_port

_TEXTS = 512
_FAILURES = (NotStartedError, LoadError, OSError, ValueError, HTTPException, SubprocessError)
_CORES = len(os.sched_getaffinity(0))
_WORKLOADS = ("short-1", "short-64", "mixed-64", "batch-32")
_BACKLOG_S = 2.0  # of the last workload, before idling is measured


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
        bundle = load(given.bundle)
        sets = texts.read(given.data, Tokenizer(bundle.tokenizer, bundle.max_tokens), _TEXTS)
        given.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise SystemExit(f"bench-ablation: {error}") from None
    adopt_orphans()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a turn that is cut off still ends its processes
    _run(given, bundle, Questions(sets, answers.expected(bundle, sets["short"].texts[:CHECKED])))


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
    for number in range(1, given.rounds + 1):
        turns: list[Contender | Lever] = [*bases.values(), *levers]
        # Forth and back, so that a machine that grows faster or slower does not favour the same ones every time.
        for one in turns if number % 2 else reversed(turns):
            _take(one, number, given, questions, found)
        raw = {"measurements": [asdict(one) for one in found.measurements], "idle_cores": found.idle}
        (given.out / "measurements.json").write_text(json.dumps(raw, indent=1))
        written = report.markdown(about, levers, found.measurements, found.idle)
        (given.out / "report.md").write_text(written, encoding="utf-8")
    print(f"Wrote {given.out / 'report.md'}")


def _take(one: Contender | Lever, number: int, given: argparse.Namespace, questions: Questions, found: Found) -> None:
    """One turn, with its failure if it has one."""
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder)
        contender = one.without(marks) if isinstance(one, Lever) else one
        machine = Machine(given.bundle, Path(), free_port(), _CORES)
        turn = Turn(contender, machine, questions, given.seconds, number)
        try:
            for measurement in _measured(turn, one, given, marks, found):
                found.measurements.append(measurement)
                print(line(measurement), flush=True)
        except _FAILURES as error:
            found.failures.append(f"{contender.title}, round {number}: {error}")
            print(f"{number} {contender.name}: {error}", flush=True)


def _measured(
    turn: Turn, one: Contender | Lever, given: argparse.Namespace, marks: Path, found: Found
) -> Iterator[Measurement]:
    """The turn's measurements; the server is up until the last was taken, and is looked at meanwhile."""
    workloads = chosen(given.workloads, of_peer=False)
    log = given.out / f"{turn.contender.name}-{turn.round}.log"
    with closing(turn.serve(workloads, log)) as measurements:
        for _ in workloads:
            measurement = next(measurements)
            if isinstance(one, Lever):
                refuse_unpatched(one, marks, replicas())
            yield measurement
        found.idle[turn.contender.name].append(_idle_cores(given.seconds))


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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="for each workload")
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
