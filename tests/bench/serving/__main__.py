"""The serving benchmark: Heed, its limit and its peers in turns, on the same machine, bundle and texts.

Run with `make bench-serve DATA=folder`; the folder holds data sets as for `heed evaluate`. Writes the report, a picture
and all measurements after every round, so an interrupted run leaves the finished rounds.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from models.bundle import Bundle
from tests.bench.harness import versions
from tests.bench.harness.processes import adopt_orphans
from tests.bench.serving import report
from tests.bench.serving.contenders import CONTENDERS, ON_GPU, Kind, Machine
from tests.bench.serving.session import Inputs, Measurement, Turn
from tests.bench.serving.setup import CORES, FAILURES, add_options, parse_options, prepare
from tests.bench.serving.workloads import WORKLOADS, Workload, choose_workloads
from tests.support.local_service import free_port

_PEERS = (Kind.BATCHING, Kind.OTHER)


def main() -> None:
    options = _options()
    if ON_GPU.name in options.contenders and shutil.which("nvidia-smi") is None:
        raise SystemExit(f"bench-serve: {ON_GPU.name} needs a GPU, and there is none")
    bundle, inputs = prepare("bench-serve", options)
    adopt_orphans()
    _run(options, bundle, inputs)


def _run(options: argparse.Namespace, bundle: Bundle, inputs: Inputs) -> None:
    contenders = [contender for contender in CONTENDERS if contender.name in options.contenders]
    measurements: list[Measurement] = []
    failures: list[str] = []
    batch_sizes: dict[str, int] = {}
    about = report.About(
        model=f"{bundle.name} {bundle.version}, {bundle.graph.name}",
        seconds=options.seconds,
        texts=[text_set.describe() for text_set in inputs.sets.values()],
        versions=versions.package_versions(contenders, options.environments),
        failures=failures,
    )
    for round_number in range(1, options.rounds + 1):
        for contender in contenders:
            machine = Machine(options.bundle, options.environments, free_port(), CORES)
            turn = Turn(contender, machine, inputs, options.seconds, round_number)
            try:
                workloads = choose_workloads(options.workloads, contender.kind in _PEERS)
                for measurement in _measure_turn(turn, workloads, batch_sizes, options.out):
                    measurements.append(measurement)
                    print(report.progress_line(measurement), flush=True)
            except FAILURES as error:
                failures.append(f"{contender.title}, round {round_number}: {error}")
                print(f"{round_number} {contender.name}: {error}", flush=True)
        (options.out / "measurements.json").write_text(
            json.dumps([asdict(measurement) for measurement in measurements], indent=1)
        )
        report.write(about, measurements, options.out)
    print(f"Wrote {options.out / 'report.md'} and {options.out / 'speed.png'}")


def _measure_turn(
    turn: Turn, workloads: Sequence[Workload], batch_sizes: dict[str, int], out: Path
) -> Iterator[Measurement]:
    if turn.contender.kind is Kind.LIMIT:
        return turn.compute(workloads, batch_sizes)
    return turn.serve(workloads, out / f"{turn.contender.name}-{turn.round}.log")


def _options() -> argparse.Namespace:
    contender_names, workload_names = (
        [contender.name for contender in CONTENDERS],
        [workload.name for workload in WORKLOADS],
    )
    default_names = [contender.name for contender in CONTENDERS if contender.usual]
    parser = argparse.ArgumentParser(prog="bench-serve", description=__doc__)
    add_options(parser)
    parser.add_argument("--environments", type=Path, default=Path(".venv"), help="folder of the peers' environments")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="for each workload")
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=contender_names,
        default=default_names,
        metavar="NAME",
        help=f"{', '.join(contender_names)}; default: those that need no GPU",
    )
    parser.add_argument(
        "--workloads",
        nargs="+",
        choices=workload_names,
        metavar="NAME",
        help=f"for every contender: {', '.join(workload_names)}; default: all, for peers only the compared ones",
    )
    return parse_options(parser, ("bundle", "environments", "out"))


if __name__ == "__main__":
    main()
