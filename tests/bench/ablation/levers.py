"""The levers: what makes Heed fast, and what a server has in the place of one that is off. The one list of them."""

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
    """Is turned off by `patches` of the same name, or by the environment and options given here."""

    name: str
    title: str
    off: str  # what is in its place
    of: Contender = INLINE  # who has it, and is compared with
    environment: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()

    @property
    def changes(self) -> Mapping[str, patches.Patch]:
        """By the module that is changed."""
        return patches.PATCHES.get(self.name, {})

    def without(self, marks: Path) -> Contender:
        """`of` with the lever off; patched processes leave their marks in that folder."""
        return replace(
            self.of,
            name=self.name,
            title=f"without {self.title}",
            settings=self.off,
            command=(*self.of.command, *self.options),
            environment={**self.of.environment, **self.environment, **self._patched(marks)},
        )

    def _patched(self, marks: Path) -> Mapping[str, str]:
        if not self.changes:
            return {}
        paths = [str(_SITE), str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"PYTHONPATH": os.pathsep.join(paths), patches.LEVER: self.name, patches.MARKS: str(marks)}


LEVERS = (
    Lever("nothing", "nothing", "a second server like the first: what two of them differ by is no lever's"),
    Lever("haproxy", "the HAProxy ingress", "Serve's own proxy, and from it a hop to the replica for each request"),
    Lever("throughput", "Serve's throughput-optimised mode", "Serve's defaults, behind HAProxy all the same"),
    Lever(
        "direct-route",
        "the direct hot route",
        "FastAPI's ordinary handling: it parses and validates the request and validates the response with the same "
        "models",
    ),
    Lever(
        "near-lengths",
        "near lengths together",
        "a batch takes what waits, oldest first, within the same budget but without a bound on padding",
    ),
    Lever("batching", "batching", "one text a batch, oldest first"),
    Lever(
        "in-flight",
        "identical texts in flight computed once",
        "every text is computed. The texts of a set differ and repeat after all have been asked, so hardly any is in "
        "flight twice: this is what looking for them costs, not what finding them saves",
    ),
    Lever(
        "one-thread",
        "one inference thread per process",
        "one replica with as many threads as there are cores",
        environment={"HEED_THREADS": "{cores}"},
        options=("--replicas", "1"),
    ),
    Lever("calibration", "calibrating a batch at once", "a text at a time"),
    Lever(
        "dashboard",
        "Ray's dashboard off",
        "`HEED_DASHBOARD=1`: it and its agents run",
        environment={"HEED_DASHBOARD": "1"},
    ),
    Lever("idle-loops", "slower idle loops of Ray", "Ray's own rates"),
    Lever("arena", "ONNX Runtime's memory arena off", "the arena is on"),
    Lever(
        "coalescing",
        "coalescing before the hop",
        "one request a call, as many calls as requests; remote placement",
        of=REMOTE,
    ),
)
