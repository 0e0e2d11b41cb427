"""One contender's turn: start it, see that it answers rightly, warm it, measure every workload, end it.

Contenders take turns on the same machine, so a turn leaves nothing behind. Knows how to measure; what the numbers are
worth beside each other is the report's.
"""

from __future__ import annotations

import http.client
import json
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.settings import Settings
from tests.bench.harness.closed_loop import Load, LoadError, closed_loop, http_request
from tests.bench.harness.processes import NotStartedError, Tree
from tests.bench.serving import bare_runtime, engine_only, open_loop
from tests.bench.serving.contenders import PEERS, Answers, Contender, Kind, Machine
from tests.bench.serving.texts import TextSet
from tests.bench.serving.workloads import CAPACITY, Workload
from tests.support.local_service import JSON, Client, metric_sum

_START_S = 120.0
_WARM_UP_S = 3.0
_BACKLOG_S = 30.0  # at most, for what the last load left in the queues
CHECKED, _WRONG = 32, 2  # texts whose labels are compared, and how many may differ before the contender is refused


@dataclass(frozen=True, slots=True)
class Measurement:
    """Counts are requests; NaN stands for what this contender, or this workload, does not have."""

    contender: str
    workload: str
    round: int
    requests_per_s: float  # answered well, and before the deadline
    texts_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float  # of the whole process tree, for one request
    pss_bytes: float
    refused: int = 0
    broken: int = 0
    late: int = 0
    padding: float = math.nan  # padded over real tokens
    generator_cores: float = 0.0  # that the load generator used beside the server
    start_s: float = math.nan  # from the command to the first right answer
    note: str = ""


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked, and the labels that the first short texts should get, by how a contender answers."""

    sets: Mapping[str, TextSet]
    labels: Mapping[Answers, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Turn:
    contender: Contender
    machine: Machine
    questions: Questions
    seconds: float
    round: int

    def serve(self, workloads: Sequence[Workload], log: Path) -> Generator[Measurement]:
        """Measurements as they are made, the server up until the next is asked for; raises NotStartedError."""
        machine, contender = self.machine, self.contender
        _refuse_unknown_settings(contender)
        tree = Tree(contender.command_on(machine), PEERS, contender.environment_on(machine), log)
        try:
            with Client(machine.port) as client:
                start_s = tree.wait(lambda: self._answers(client), _START_S)
                self._check(client)
                self._load(self._bodies("mixed", 1), 64, _WARM_UP_S)
                capacity = math.nan
                for workload in workloads:
                    if workload.load is not None and not capacity > 0:
                        raise LoadError(f"no rate for {workload.name}: nothing was answered to {CAPACITY}")
                    tree.rest(_BACKLOG_S)
                    found = self._measure(tree, client, workload, capacity, start_s)
                    capacity = found.requests_per_s if workload.name == CAPACITY else capacity
                    yield found
        finally:
            tree.stop()

    def compute(self, workloads: Sequence[Workload], sizes: dict[str, int]) -> Iterator[Measurement]:
        """The limit's turn: no server. The best batch size of each set is searched once and kept in `sizes`."""
        bundle, cores = self.machine.bundle, self.machine.cores
        for workload in workloads:
            texts = self.questions.sets[workload.texts].texts
            if workload.connections == 1:
                one = engine_only.measure(bundle, texts, self.seconds)
                nan = math.nan
                yield self._limit(workload, one.texts_per_s, one.p50_ms, one.p99_ms, nan, nan, "engine alone")
            elif workload.connections == 64:
                if workload.texts not in sizes:
                    sizes[workload.texts] = bare_runtime.best(bundle, texts, cores, self.seconds / 3).batch_size
                size = sizes[workload.texts]
                best = bare_runtime.measure(bundle, texts, cores, size, self.seconds)
                rates = (best.texts_per_s, math.nan, math.nan, best.cpu_ms_per_text, best.pss_bytes)
                yield self._limit(workload, *rates, f"batch size {size}")

    def _limit(
        self, workload: Workload, rate: float, p50_ms: float, p99_ms: float, cpu_ms: float, pss: float, note: str
    ) -> Measurement:
        name = self.contender.name
        return Measurement(name, workload.name, self.round, rate, rate, p50_ms, p99_ms, cpu_ms, pss, note=note)

    def _answers(self, client: Client) -> bool:
        try:
            if self.contender.ready and client.get(self.contender.ready).status != 200:
                return False
            reply = client.send("POST", self.contender.path, self._bodies("short", 1)[0], JSON)
        except (OSError, http.client.HTTPException):
            return False
        if reply.status in (400, 415, 422):
            raise NotStartedError(f"does not understand the question: {reply.status} {reply.body[:200]!r}")
        return reply.status == 200

    def _check(self, client: Client) -> None:
        """Refuse to measure a contender that answers something else, alone or in one request."""
        expected = self.questions.labels.get(self.contender.answers)
        if expected is None:
            return
        asked = [*self._bodies("short", 1)[:CHECKED], self._bodies("short", CHECKED)[0]]
        found = [label for body in asked for label in self._labels(client, body)]
        wrong = sum(a != b for a, b in zip(found, [*expected, *expected], strict=False))
        if len(found) != 2 * len(expected) or wrong > _WRONG:
            raise NotStartedError(f"{wrong} of {len(found)} labels differ from {self.contender.answers.value}")

    def _labels(self, client: Client, body: bytes) -> list[str]:
        return self.contender.labels(client.send("POST", self.contender.path, body, JSON).json)

    def _measure(self, tree: Tree, client: Client, workload: Workload, capacity: float, start_s: float) -> Measurement:
        padded = self._padding(client)
        before = tree.cpu_s()
        found = self._run(workload, capacity)
        used_s = sum(used - before.get(pid, 0.0) for pid, used in tree.cpu_s().items())
        pss_bytes = tree.pss_bytes()
        rate = found.answered / found.seconds
        return Measurement(
            self.contender.name,
            workload.name,
            self.round,
            rate,
            rate * workload.texts_per_request,
            found.p50_ms,
            found.p99_ms,
            used_s * 1000 / found.answered if found.answered else math.nan,
            pss_bytes,
            found.refused,
            found.broken,
            found.late,
            padded(),
            found.generator_cpu_s / found.seconds,
            start_s,
            "" if workload.load is None else f"{workload.load * capacity:.0f} a second sent",
        )

    def _run(self, workload: Workload, capacity: float) -> Load:
        bodies = self._bodies(workload.texts, workload.texts_per_request)
        if workload.load is None:
            return self._load(bodies, workload.connections, self.seconds)
        told = self.contender.deadline_header
        extra = f"{told}: {round(workload.deadline_s * 1000)}\r\n" if told else ""
        requests = [http_request(self.contender.path, body, extra) for body in bodies]
        rate = workload.load * capacity
        return open_loop.measure(self.machine.port, requests, rate, self.seconds, workload.deadline_s)

    def _load(self, bodies: Sequence[bytes], connections: int, seconds: float) -> Load:
        url = f"http://127.0.0.1:{self.machine.port}{self.contender.path}"
        return closed_loop(url, bodies, connections, seconds)

    def _bodies(self, texts: str, size: int) -> list[bytes]:
        """The set in order, so many texts a request."""
        asked = self.questions.sets[texts].texts
        parts = [asked[start : start + size] for start in range(0, len(asked) - size + 1, size)]
        return [json.dumps(self.contender.body(part)).encode() for part in parts]

    def _padding(self, client: Client) -> Callable[[], float]:
        """Called after the load: padded over real tokens of all that ran since now."""
        if self.contender.kind is not Kind.HEED:
            return lambda: math.nan
        real, padded = self._counts(client)

        def since() -> float:
            real_after, padded_after = self._counts(client)
            return (padded_after - padded) / (real_after - real) if real_after > real else math.nan

        return since

    def _counts(self, client: Client) -> tuple[float, float]:
        return metric_sum(client, "heed_tokens_total"), metric_sum(client, "heed_batch_tokens_sum")


def _refuse_unknown_settings(contender: Contender) -> None:
    """A variable that no setting reads is ignored in silence: one placement would be measured under another's name."""
    known = {f"HEED_{name.upper()}" for name in Settings.model_fields}
    if unknown := [name for name in contender.environment if name.startswith("HEED_") and name not in known]:
        raise NotStartedError(f"this Heed has no setting {unknown[0]}")
