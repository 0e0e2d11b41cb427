"""What explaining costs those who only ask: plain requests beside none, beside explanations, and after them.

Two services run, of which one never explains anything. In each round, in random order, plain requests go through
HAProxy to the one that never explains, to the other while it explains nothing, and to it while callers ask it for
explanations without pause. Prints medians over rounds of each round's own p50, so that what else the machine does
weighs on all three alike. Run with `make bench-explain`.
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
MOST_SLOWER = {"idle": 0.02, "explaining": 0.05}
"""Than `never`, at p50."""

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
    """Of one phase: milliseconds of plain requests, and explanations a second."""

    p50_ms: float
    p99_ms: float
    plain_per_s: float
    explained_per_s: float


def measure(service: Service, seconds: float, connections: int, explainers: int) -> Round:
    """Every text differs, so that nothing is answered from a cache or together with another."""
    with ExitStack() as under_way:
        explained: list[Reply | Exception] = []
        if explainers:
            explained = under_way.enter_context(load(service.port, explainers, numbered("e"), EXPLAIN))
        started_s = time.monotonic()
        with load(service.port, connections, numbered("p")) as plain:
            time.sleep(seconds)
        spent_s = time.monotonic() - started_s
        count = len(answered(explained))
    times = sorted(1000 * reply.seconds for reply in answered(plain))
    return Round(median(times), times[len(times) * 99 // 100], len(times) / spent_s, count / spent_s)


def numbered(kind: str) -> Callable[[int], object]:
    return lambda number: {"inputs": f"{TEXTS[number % len(TEXTS)]} {kind}{number}"}


def answered(found: Sequence[Reply | Exception]) -> list[Reply]:
    """Raises when anything but an answer, or a refusal for overload, came back."""
    wrong = [one for one in found if isinstance(one, Exception) or one.status not in (200, 429)]
    if wrong:
        raise SystemExit(f"{len(wrong)} of {len(found)} requests failed, the first: {wrong[0]}")
    return [one for one in found if isinstance(one, Reply) and one.status == 200]


def table(rounds: dict[Phase, list[Round]]) -> str:
    never = [one.p50_ms for one in rounds["never"]]
    lines = ["| service | p50 ms | beside never | p99 ms | plain/s | explanations/s |", "|---|--:|--:|--:|--:|--:|"]
    for phase, own in rounds.items():
        figures = [median(getattr(one, name) for one in own) for name in Round.__slots__]
        beside = slower([one.p50_ms for one in own], never)
        lines.append(
            f"| {phase} | {figures[0]:.2f} | {beside:+.1%} | {figures[1]:.1f} | {figures[2]:.0f} | {figures[3]:.1f} |"
        )
    return "\n".join(lines)


def slower(own: Sequence[float], never: Sequence[float]) -> float:
    """The median over rounds of how much longer than in the same round of `never`."""
    return median(one / other - 1 for one, other in zip(own, never, strict=True))


def verdicts(rounds: dict[Phase, list[Round]]) -> list[str]:
    found = []
    for phase, limit in MOST_SLOWER.items():
        own, never = ([one.p50_ms for one in rounds[name]] for name in (phase, "never"))  # type: ignore[index]
        word = "within" if slower(own, never) <= limit else "OVER"
        found.append(f"{phase}: {slower(own, never):+.1%} at p50, {word} the {limit:.0%} that is allowed")
    return found


@contextmanager
def serving(replicas: int) -> Iterator[Service]:
    service = Service(SHIPPED, free_port(), replicas)
    try:
        yield service
    finally:
        service.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each of the three phases of a round")
    parser.add_argument("--connections", type=int, default=4, help="that ask plain texts without pause")
    parser.add_argument("--explainers", type=int, default=2, help="that ask for explanations without pause")
    parser.add_argument("--replicas", type=int, default=2)
    given = parser.parse_args()
    rounds: dict[Phase, list[Round]] = {phase: [] for phase in get_args(Phase)}
    with serving(given.replicas) as never, serving(given.replicas) as explains:
        for text in TEXTS * 4:  # each replica opens its session
            assert explains.client.post({"inputs": text}, EXPLAIN).status == 200
        for number in range(given.rounds):
            order: list[Phase] = random.Random(number).sample(get_args(Phase), 3)
            for phase in order:
                service = never if phase == "never" else explains
                explainers = given.explainers if phase == "explaining" else 0
                rounds[phase].append(measure(service, given.seconds, given.connections, explainers))
    print(f"{given.rounds} rounds of {given.seconds:g} s, {given.connections} plain connections, ", end="")
    print(f"{given.explainers} for explanations, {given.replicas} replicas\n\n{table(rounds)}\n")
    print("\n".join(verdicts(rounds)))


if __name__ == "__main__":
    main()
