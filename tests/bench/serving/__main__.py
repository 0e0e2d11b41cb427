"""The serving benchmark: Heed, its limit and its peers in turn, on the same machine, bundle and texts.

Run with `make bench-serve DATA=folder`; the folder holds data sets as for `heed evaluate`. Writes the report, a picture
and all measurements after every round, so an interrupted run leaves those that it finished.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from http.client import HTTPException
from pathlib import Path
from subprocess import SubprocessError

from models.bundle import SHIPPED, Bundle, load_bundle
from models.text.tokenizer import Tokenizer
from tests.bench.harness import versions
from tests.bench.harness.closed_loop import MISSING, LoadError, wrk_version
from tests.bench.harness.processes import NotStartedError, adopt_orphans
from tests.bench.serving import expected_labels, report, texts, workloads
from tests.bench.serving.contenders import CONTENDERS, ON_GPU, Kind, Machine
from tests.bench.serving.session import CHECKED, Measurement, Questions, Turn
from tests.bench.serving.workloads import WORKLOADS, Workload
from tests.support.local_service import free_port

_TEXTS = 512
# What a server, or a process of the limit, can do to its own turn; the others go on.
_FAILURES = (NotStartedError, LoadError, OSError, ValueError, HTTPException, SubprocessError)
_PEERS = (Kind.BATCHING, Kind.OTHER)
_CORES = len(os.sched_getaffinity(0))


def main() -> None:
    given = _options()
    if wrk_version() is None:
        raise SystemExit(MISSING)
    if ON_GPU.name in given.contenders and shutil.which("nvidia-smi") is None:
        raise SystemExit(f"bench-serve: {ON_GPU.name} needs a GPU, and there is none")
    try:
        bundle = load_bundle(given.bundle)
        sets = texts.read(given.data, Tokenizer(bundle.tokenizer, bundle.max_tokens), _TEXTS)
        given.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise SystemExit(f"bench-serve: {error}") from None
    adopt_orphans()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a turn that is cut off still ends its processes
    _run(given, bundle, Questions(sets, expected_labels.expected(bundle, sets["short"].texts[:CHECKED])))


def _run(given: argparse.Namespace, bundle: Bundle, questions: Questions) -> None:
    chosen = [one for one in CONTENDERS if one.name in given.contenders]
    measurements: list[Measurement] = []
    failures: list[str] = []
    batch_sizes: dict[str, int] = {}
    about = report.About(
        model=f"{bundle.name} {bundle.version}, {bundle.graph.name}",
        seconds=given.seconds,
        texts=[one.described() for one in questions.sets.values()],
        versions=versions.found(chosen, given.environments),
        failures=failures,
    )
    for number in range(1, given.rounds + 1):
        for contender in chosen:
            machine = Machine(given.bundle, given.environments, free_port(), _CORES)
            turn = Turn(contender, machine, questions, given.seconds, number)
            try:
                for measurement in _taken(
                    turn, workloads.chosen(given.workloads, contender.kind in _PEERS), batch_sizes, given.out
                ):
                    measurements.append(measurement)
                    print(report.line(measurement), flush=True)
            except _FAILURES as error:
                failures.append(f"{contender.title}, round {number}: {error}")
                print(f"{number} {contender.name}: {error}", flush=True)
        (given.out / "measurements.json").write_text(json.dumps([asdict(one) for one in measurements], indent=1))
        report.write(about, measurements, given.out)
    print(f"Wrote {given.out / 'report.md'} and {given.out / 'speed.png'}")


def _taken(turn: Turn, workloads: Sequence[Workload], batch_sizes: dict[str, int], out: Path) -> Iterator[Measurement]:
    if turn.contender.kind is Kind.LIMIT:
        return turn.compute(workloads, batch_sizes)
    return turn.serve(workloads, out / f"{turn.contender.name}-{turn.round}.log")


def _options() -> argparse.Namespace:
    names, asked = [one.name for one in CONTENDERS], [one.name for one in WORKLOADS]
    usual = [one.name for one in CONTENDERS if one.usual]
    parser = argparse.ArgumentParser(prog="bench-serve", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each data set")
    parser.add_argument("--bundle", type=Path, default=SHIPPED, help="folder of the model")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-serve"), help="folder of the report")
    parser.add_argument("--environments", type=Path, default=Path(".venv"), help="folder of the peers' environments")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="for each workload")
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=names,
        default=usual,
        metavar="NAME",
        help=f"{', '.join(names)}; by default those that need no GPU",
    )
    parser.add_argument(
        "--workloads",
        nargs="+",
        choices=asked,
        metavar="NAME",
        help=f"for every contender: {', '.join(asked)}; by default all, and of the peers those they are compared in",
    )
    given = parser.parse_args()
    # Peers run in their own folder.
    for name in ("bundle", "environments", "out"):
        setattr(given, name, getattr(given, name).absolute())
    return given


if __name__ == "__main__":
    main()
