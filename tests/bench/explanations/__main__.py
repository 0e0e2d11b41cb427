"""The cost of explanations for plain requests: latency without, beside and after explanations.

Two services run; only the second ever explains. Each round has three phases in random order, all through HAProxy. In
`never`, plain requests go to the first service. In `idle`, they go to the second without explanations. In `explaining`,
they go to the second under a constant load of explanations. Prints medians over rounds of the p50 per round, so that
other load on the machine affects all phases alike. Run with `make bench-explain`.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Literal, get_args

from models.bundle import SHIPPED
from tests.support.local_service import Reply, Service, free_port, load

Phase = Literal["never", "idle", "explaining"]
MAX_SLOWDOWN = {"idle": 0.02, "explaining": 0.05}
"""The allowed increase of p50 over `never`."""

EXPLAIN = "/v1/explain/sentiment"
TEXTS = (
    "Shares of Acme plunge after profit warning",
    "公司净利润同比增长50%，股价涨停",
    "The room was lovely, but the staff ignored us all week",
    "Quarterly revenue rose 12 percent, in line with what analysts had expected",
    "平安银行：净利润大增；永吉股份：股东拟减持",
    "The phone arrived two weeks late and the battery is dead by noon",
)


@dataclass(frozen=True, slots=True)
class Round:
    """The latencies of plain requests in a phase of a round, and the rates per second."""

    p50_ms: float
    p99_ms: float
    plain_per_s: float
    explained_per_s: float


def measure(service: Service, seconds: float, connections: int, explainers: int) -> Round:
    """Measure a phase. Every text differs, so that no answer is cached or shared."""
    with ExitStack() as stack:
        explained: list[Reply | Exception] = []
        if explainers:
            explained = stack.enter_context(load(service.port, explainers, text_factory("e"), EXPLAIN))
        started_s = time.monotonic()
        with load(service.port, connections, text_factory("p")) as plain:
            time.sleep(seconds)
        spent_s = time.monotonic() - started_s
        count = len(successful(explained))
    times = sorted(1000 * reply.seconds for reply in successful(plain))
    return Round(median(times), times[len(times) * 99 // 100], len(times) / spent_s, count / spent_s)


def text_factory(kind: str) -> Callable[[int], object]:
    return lambda number: {"inputs": f"{TEXTS[number % len(TEXTS)]} {kind}{number}"}


def successful(replies: Sequence[Reply | Exception]) -> list[Reply]:
    """Return the successful replies. Raise SystemExit for any failure other than a refusal for overload."""
    failures = [reply for reply in replies if isinstance(reply, Exception) or reply.status not in (200, 429)]
    if failures:
        raise SystemExit(f"{len(failures)} of {len(replies)} requests failed, the first: {failures[0]}")
    return [reply for reply in replies if isinstance(reply, Reply) and reply.status == 200]


def table(rounds: dict[Phase, list[Round]]) -> str:
    never = [round_.p50_ms for round_ in rounds["never"]]
    lines = ["| service | p50 ms | over never | p99 ms | plain/s | explanations/s |", "|---|--:|--:|--:|--:|--:|"]
    for phase, phase_rounds in rounds.items():
        figures = [median(getattr(round_, name) for round_ in phase_rounds) for name in Round.__slots__]
        increase = median_slowdown([round_.p50_ms for round_ in phase_rounds], never)
        lines.append(
            f"| {phase} | {figures[0]:.2f} | {increase:+.1%} | {figures[1]:.1f} | {figures[2]:.0f} | {figures[3]:.1f} |"
        )
    return "\n".join(lines)


def median_slowdown(times: Sequence[float], never: Sequence[float]) -> float:
    """Return the median increase over `never` in the same round."""
    return median(time / base - 1 for time, base in zip(times, never, strict=True))


def verdicts(rounds: dict[Phase, list[Round]]) -> list[str]:
    lines = []
    for phase, limit in MAX_SLOWDOWN.items():
        times, never = ([round_.p50_ms for round_ in rounds[name]] for name in (phase, "never"))  # type: ignore[index]
        word = "within" if median_slowdown(times, never) <= limit else "OVER"
        lines.append(f"{phase}: {median_slowdown(times, never):+.1%} at p50, {word} the limit of {limit:.0%}")
    return lines


@contextmanager
def run_service(replicas: int) -> Iterator[Service]:
    service = Service(SHIPPED, free_port(), replicas)
    try:
        yield service
    finally:
        service.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each of the three phases per round")
    parser.add_argument("--connections", type=int, default=4, help="connections that send plain requests continuously")
    parser.add_argument("--explainers", type=int, default=2, help="connections that request explanations continuously")
    parser.add_argument("--replicas", type=int, default=2)
    options = parser.parse_args()
    rounds: dict[Phase, list[Round]] = {phase: [] for phase in get_args(Phase)}
    with run_service(options.replicas) as never, run_service(options.replicas) as explains:
        for text in TEXTS * 4:  # opens the session of each replica
            assert explains.client.post({"inputs": text}, EXPLAIN).status == 200
        for number in range(options.rounds):
            order: list[Phase] = random.Random(number).sample(get_args(Phase), 3)
            for phase in order:
                service = never if phase == "never" else explains
                explainers = options.explainers if phase == "explaining" else 0
                rounds[phase].append(measure(service, options.seconds, options.connections, explainers))
    print(f"{options.rounds} rounds of {options.seconds:g} s, {options.connections} plain connections, ", end="")
    print(f"{options.explainers} for explanations, {options.replicas} replicas\n\n{table(rounds)}\n")
    print("\n".join(verdicts(rounds)))


if __name__ == "__main__":
    main()
