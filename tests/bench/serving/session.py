"""A turn of a contender: start it, check its answers, warm it up, measure every workload, stop it.

Contenders take turns on the same machine, so a turn leaves no process behind. Comparing the measurements is the task of
the report.
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
_BACKLOG_S = 30.0  # at most, for the queues to drain after a load
CHECKED, _MAX_WRONG = 32, 2  # texts whose labels are compared, and the labels that may differ


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measurement. Counts are requests. NaN is a value that the contender or the workload does not have."""

    contender: str
    workload: str
    round: int
    requests_per_s: float  # answered successfully, before the deadline
    texts_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float  # of the whole process tree, per request
    pss_bytes: float
    refused: int = 0
    broken: int = 0
    late: int = 0
    padding: float = math.nan  # padded over real tokens
    generator_cores: float = 0.0  # used by the load generator
    start_s: float = math.nan  # from the command to the first right answer
    note: str = ""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The text sets, and the expected labels of the first short texts by the kind of answers."""

    sets: Mapping[str, TextSet]
    labels: Mapping[Answers, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Turn:
    contender: Contender
    machine: Machine
    inputs: Inputs
    seconds: float
    round: int

    def serve(self, workloads: Sequence[Workload], log: Path) -> Generator[Measurement]:
        """Yield a measurement per workload while the server runs. Raise NotStartedError if it fails to start."""
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
                    tree.wait_idle(_BACKLOG_S)
                    measurement = self._measure(tree, client, workload, capacity, start_s)
                    capacity = measurement.requests_per_s if workload.name == CAPACITY else capacity
                    yield measurement
        finally:
            tree.stop()

    def compute(self, workloads: Sequence[Workload], sizes: dict[str, int]) -> Iterator[Measurement]:
        """Yield the measurements of the limit. `sizes` caches the best batch size of each text set."""
        bundle, cores = self.machine.bundle, self.machine.cores
        for workload in workloads:
            texts = self.inputs.sets[workload.texts].texts
            if workload.connections == 1:
                speed = engine_only.measure(bundle, texts, self.seconds)
                nan = math.nan
                yield self._limit(workload, speed.texts_per_s, speed.p50_ms, speed.p99_ms, nan, nan, "engine only")
            elif workload.connections == 64:
                if workload.texts not in sizes:
                    sizes[workload.texts] = bare_runtime.find_best_batch_size(
                        bundle, texts, cores, self.seconds / 3
                    ).batch_size
                size = sizes[workload.texts]
                limit = bare_runtime.measure(bundle, texts, cores, size, self.seconds)
                rates = (limit.texts_per_s, math.nan, math.nan, limit.cpu_ms_per_text, limit.pss_bytes)
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
            raise NotStartedError(f"rejects the request: {reply.status} {reply.body[:200]!r}")
        return reply.status == 200

    def _check(self, client: Client) -> None:
        """Raise NotStartedError if labels differ from the expected ones, in single requests or in a list."""
        expected = self.inputs.labels.get(self.contender.answers)
        if expected is None:
            return
        bodies = [*self._bodies("short", 1)[:CHECKED], self._bodies("short", CHECKED)[0]]
        labels = [label for body in bodies for label in self._labels(client, body)]
        wrong = sum(a != b for a, b in zip(labels, [*expected, *expected], strict=False))
        if len(labels) != 2 * len(expected) or wrong > _MAX_WRONG:
            raise NotStartedError(f"{wrong} of {len(labels)} labels differ from {self.contender.answers.value}")

    def _labels(self, client: Client, body: bytes) -> list[str]:
        return self.contender.labels(client.send("POST", self.contender.path, body, JSON).json)

    def _measure(self, tree: Tree, client: Client, workload: Workload, capacity: float, start_s: float) -> Measurement:
        padded = self._padding(client)
        before = tree.cpu_s()
        load = self._run(workload, capacity)
        used_s = sum(used - before.get(pid, 0.0) for pid, used in tree.cpu_s().items())
        pss_bytes = tree.pss_bytes()
        rate = load.answered / load.seconds
        return Measurement(
            self.contender.name,
            workload.name,
            self.round,
            rate,
            rate * workload.texts_per_request,
            load.p50_ms,
            load.p99_ms,
            used_s * 1000 / load.answered if load.answered else math.nan,
            pss_bytes,
            load.refused,
            load.broken,
            load.late,
            padded(),
            load.generator_cpu_s / load.seconds,
            start_s,
            "" if workload.load is None else f"{workload.load * capacity:.0f} per second sent",
        )

    def _run(self, workload: Workload, capacity: float) -> Load:
        bodies = self._bodies(workload.texts, workload.texts_per_request)
        if workload.load is None:
            return self._load(bodies, workload.connections, self.seconds)
        header = self.contender.deadline_header
        extra = f"{header}: {round(workload.deadline_s * 1000)}\r\n" if header else ""
        requests = [http_request(self.contender.path, body, extra) for body in bodies]
        rate = workload.load * capacity
        return open_loop.measure(self.machine.port, requests, rate, self.seconds, workload.deadline_s)

    def _load(self, bodies: Sequence[bytes], connections: int, seconds: float) -> Load:
        url = f"http://127.0.0.1:{self.machine.port}{self.contender.path}"
        return closed_loop(url, bodies, connections, seconds)

    def _bodies(self, name: str, size: int) -> list[bytes]:
        """Return the bodies of the text set in order, with `size` texts per request."""
        texts = self.inputs.sets[name].texts
        chunks = [texts[start : start + size] for start in range(0, len(texts) - size + 1, size)]
        return [json.dumps(self.contender.body(chunk)).encode() for chunk in chunks]

    def _padding(self, client: Client) -> Callable[[], float]:
        """Return a function that returns padded over real tokens since this call."""
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
    """Raise NotStartedError for unknown settings. Heed ignores them, so a wrong configuration would be measured."""
    known = {f"HEED_{name.upper()}" for name in Settings.model_fields}
    if unknown := [name for name in contender.environment if name.startswith("HEED_") and name not in known]:
        raise NotStartedError(f"this Heed has no setting {unknown[0]}")
