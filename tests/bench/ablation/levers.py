"""The list of levers: the optimisations of Heed, each with its replacement when it is off."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.bench.ablation import patches
from tests.bench.serving.contenders import INLINE, REMOTE, Contender

_SITE = Path(__file__).parent / "site"
_ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, slots=True)
class Lever:
    """An optimisation. The patches of its name, or its environment and options, turn it off."""

    name: str
    title: str
    off: str  # the replacement, for the report
    base: Contender = INLINE  # the contender that has it
    environment: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()

    @property
    def changes(self) -> Mapping[str, patches.Patch]:
        """The patches by the module that they change."""
        return patches.PATCHES.get(self.name, {})

    def without(self, marks: Path) -> Contender:
        """Return the base contender with the lever off. Patched processes leave their marks in the folder."""
        return replace(
            self.base,
            name=self.name,
            title=f"without {self.title}",
            settings=self.off,
            command=(*self.base.command, *self.options),
            environment={**self.base.environment, **self.environment, **self._patched(marks)},
        )

    def _patched(self, marks: Path) -> Mapping[str, str]:
        if not self.changes:
            return {}
        paths = [str(_SITE), str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"PYTHONPATH": os.pathsep.join(paths), patches.LEVER: self.name, patches.MARKS: str(marks)}


LEVERS = (
    Lever("nothing", "nothing", "an identical second server: the difference of the two is noise"),
    Lever("haproxy", "the HAProxy ingress", "Serve's proxy, with a hop to the replica per request"),
    Lever("throughput", "Serve's throughput-optimised mode", "Serve's defaults, still behind HAProxy"),
    Lever(
        "direct-route",
        "the direct hot route",
        "FastAPI's ordinary handling: it parses and validates the request and validates the response with the same "
        "models",
    ),
    Lever(
        "near-lengths",
        "near lengths together",
        "batches of the oldest texts, within the same budget but without a limit on padding",
    ),
    Lever("batching", "batching", "one text per batch, oldest first"),
    Lever(
        "in-flight",
        "identical texts in flight computed once",
        "every text is computed. The texts of a set differ and repeat only after the whole set, so few are in "
        "flight twice: this shows the cost of the lookup, not its gain",
    ),
    Lever(
        "one-thread",
        "one inference thread per process",
        "one replica with as many threads as there are cores",
        environment={"HEED_THREADS": "{cores}"},
        options=("--replicas", "1"),
    ),
    Lever("calibration", "calibrating whole batches", "one text at a time"),
    Lever(
        "dashboard",
        "Ray's dashboard off",
        "`HEED_DASHBOARD=1`: the dashboard and its agents run",
        environment={"HEED_DASHBOARD": "1"},
    ),
    Lever("idle-loops", "slower idle loops of Ray", "Ray's default rates"),
    Lever("arena", "ONNX Runtime's memory arena off", "the arena is on"),
    Lever(
        "coalescing",
        "coalescing before the hop",
        "one request per call; remote placement",
        base=REMOTE,
    ),
)
