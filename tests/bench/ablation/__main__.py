"""The ablation of the levers: Heed beside Heed with exactly one lever off, on the same machine and texts.

Run with `make bench-ablation DATA=folder`; the folder holds data sets as for `heed evaluate`. For each lever, both
servers run at the same time and get requests in turn, so that changes of the machine's speed affect both. Writes the
report after every lever, so an interrupted run leaves the finished levers. A lever fails, rather than being measured
under a wrong name, if a replica of the server was not patched.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import psutil

from models.bundle import Bundle
from tests.bench.ablation import patches, report
from tests.bench.ablation.levers import LEVERS, Lever
from tests.bench.harness import versions
from tests.bench.harness.processes import NotStartedError, adopt_orphans
from tests.bench.serving.contenders import Contender, Machine
from tests.bench.serving.report import About, progress_line
from tests.bench.serving.session import Inputs, Measurement, Turn
from tests.bench.serving.setup import CORES, FAILURES, add_options, parse_options, prepare
from tests.bench.serving.workloads import WORKLOADS, Workload, choose_workloads
from tests.support.local_service import command_of, free_port

_WORKLOADS = ("short-1", "short-64", "mixed-64")
_BACKLOG_S = 2.0  # for the last workload to drain, before idle use is measured

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Results:
    measurements: list[Measurement] = field(default_factory=list)
    idle: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: list[str] = field(default_factory=list)


def main() -> None:
    options = _options()
    _run(options, *prepare("bench-ablation", options))


def _run(options: argparse.Namespace, bundle: Bundle, inputs: Inputs) -> None:
    levers = [lever for lever in LEVERS if lever.name in options.levers]
    bases = {lever.base.name: lever.base for lever in levers}
    results = Results()
    about = About(
        model=f"{bundle.name} {bundle.version}, {bundle.graph.name}",
        seconds=options.seconds,
        texts=[text_set.describe() for text_set in inputs.sets.values()],
        versions=versions.package_versions(list(bases.values()), Path()),
        failures=results.failures,
    )
    for index, lever in enumerate(levers):
        try:
            _compare(lever, index * options.rounds, options, inputs, results)
        except FAILURES as error:
            results.failures.append(f"without {lever.title}: {error}")
            print(f"{lever.name}: {error}", flush=True)
        raw = {
            "measurements": [asdict(measurement) for measurement in results.measurements],
            "idle_cores": results.idle,
        }
        (options.out / "measurements.json").write_text(json.dumps(raw, indent=1))
        markdown = report.render(about, levers, options.rounds, results.measurements, results.idle)
        (options.out / "report.md").write_text(markdown, encoding="utf-8")
    print(f"Wrote {options.out / 'report.md'}")


def _compare(lever: Lever, before: int, options: argparse.Namespace, inputs: Inputs, results: Results) -> None:
    """Add the measurements of both servers, in rounds numbered after `before`. Raise any of FAILURES."""
    workloads = [
        workload for _ in range(options.rounds) for workload in choose_workloads(options.workloads, of_peer=False)
    ]
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder)
        with (
            _run_side(lever.base, None, marks, workloads, options, inputs) as on,
            _run_side(lever.without(marks), lever, marks, workloads, options, inputs) as off,
        ):
            for index in range(len(workloads)):
                round_number = before + 1 + index * options.rounds // len(workloads)
                # Alternate the order, so that a drift of the machine's speed favours neither server.
                for side in (on, off) if round_number % 2 else (off, on):
                    measurement = replace(side.next(), round=round_number)
                    results.measurements.append(measurement)
                    print(progress_line(measurement), flush=True)
            for contender, side in ((lever.base.name, on), (lever.name, off)):
                results.idle[contender].append(side.idle_cores())


@dataclass(frozen=True, slots=True)
class Side:
    """A server, seen through the connection to the process that measures it on request."""

    connection: Connection

    def next(self) -> Measurement:
        """Return the measurement of the next workload. Raise NotStartedError with the failure of that process."""
        return self._request(Measurement)

    def idle_cores(self) -> float:
        """Return the cores that the server uses without requests. Call it after all workloads."""
        return self._request(float)

    def _request(self, kind: type[T]) -> T:
        self.connection.send(True)
        reply = self.connection.recv()
        if not isinstance(reply, kind):
            raise NotStartedError(str(reply))
        return reply


@contextmanager
def _run_side(
    contender: Contender,
    lever: Lever | None,
    marks: Path,
    workloads: Sequence[Workload],
    options: argparse.Namespace,
    inputs: Inputs,
) -> Iterator[Side]:
    turn = Turn(contender, Machine(options.bundle, Path(), free_port(), CORES), inputs, options.seconds, 0)
    connection, remote = Pipe()
    log = options.out / f"{lever.name if lever else contender.name}.log"
    # Forked, so that every process below it belongs to its server, and all modules are loaded.
    process = get_context("fork").Process(target=_measure, args=(remote, turn, lever, marks, workloads, log))
    process.start()
    remote.close()
    try:
        yield Side(connection)
    finally:
        with suppress(OSError):  # it may have ended
            connection.send(False)
        process.join()


def _measure(
    connection: Connection, turn: Turn, lever: Lever | None, marks: Path, workloads: Sequence[Workload], log: Path
) -> None:
    """Send the measurement of a workload for each True received, then the idle use. End with False."""
    adopt_orphans()
    with closing(turn.serve(workloads, log)) as measurements:
        try:
            for _ in workloads:
                if not connection.recv():
                    return
                measurement = next(measurements)
                if lever is not None:
                    require_patched(lever, marks, replica_ids())
                connection.send(measurement)
            while connection.recv():
                connection.send(_idle_cores(turn.seconds))
        except FAILURES as error:
            connection.send(str(error))


def replica_ids() -> list[int]:
    """Return the process ids of the replicas of the running server."""
    return [process.pid for process in _server() if "ServeReplica" in command_of(process)]


def require_patched(lever: Lever, marks: Path, process_ids: Sequence[int]) -> None:
    """Raise NotStartedError unless every process has turned the lever off."""
    for module in lever.changes:
        missing = [process_id for process_id in process_ids if not patches.mark(marks, module, process_id).exists()]
        if missing or not process_ids:
            raise NotStartedError(f"{lever.name} is not off: {module} was not changed in {missing or 'any replica'}")


def _idle_cores(seconds: float) -> float:
    time.sleep(_BACKLOG_S)
    before_s = _cpu_s()
    time.sleep(seconds)
    return (_cpu_s() - before_s) / seconds


def _cpu_s() -> float:
    total_s = 0.0
    for process in _server():
        with suppress(psutil.Error):
            total_s += sum(process.cpu_times()[:2])
    return total_s


def _server() -> list[psutil.Process]:
    processes: list[psutil.Process] = psutil.Process().children(recursive=True)
    return processes


def _options() -> argparse.Namespace:
    lever_names, workload_names = [lever.name for lever in LEVERS], [workload.name for workload in WORKLOADS]
    parser = argparse.ArgumentParser(prog="bench-ablation", description=__doc__)
    add_options(parser)
    parser.add_argument("--rounds", type=int, default=6, help="rounds per lever")
    parser.add_argument("--seconds", type=int, default=3, help="for each workload")
    parser.add_argument(
        "--levers", nargs="+", choices=lever_names, default=lever_names, metavar="NAME", help=", ".join(lever_names)
    )
    parser.add_argument(
        "--workloads",
        nargs="+",
        choices=workload_names,
        default=_WORKLOADS,
        metavar="NAME",
        help=", ".join(workload_names),
    )
    return parse_options(parser, ("bundle", "out"))


if __name__ == "__main__":
    main()
