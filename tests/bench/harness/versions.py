"""Versions of what was measured: Heed's packages from this environment, the peers' from theirs, and the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench.harness.closed_loop import wrk_version
from tests.bench.serving.contenders import Contender

_ASK = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = "missing"
print(json.dumps(found))
"""


def found(contenders: Sequence[Contender], environments: Path) -> Mapping[str, str]:
    """By contender: its packages and their versions, in words."""
    versions = {}
    for one in contenders:
        asked = _of(one.python(environments), one.packages)
        versions[one.name] = ", ".join(f"{name} {version}" for name, version in asked.items())
    return versions


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores ({model}), Python {platform.python_version()}, {wrk_version()}"


def _of(python: Path, packages: Sequence[str]) -> Mapping[str, str]:
    try:
        done = subprocess.run([python, "-c", _ASK, *packages], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}  # the contender will say so itself, when it does not start
    versions: Mapping[str, str] = json.loads(done.stdout)
    return versions
