"""Versions of the measured packages, each from the environment of its contender, and the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench.harness.closed_loop import wrk_version
from tests.bench.serving.contenders import Contender

_SCRIPT = """
import importlib.metadata, json, sys
versions = {}
for name in sys.argv[1:]:
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        versions[name] = "missing"
print(json.dumps(versions))
"""


def package_versions(contenders: Sequence[Contender], environments: Path) -> Mapping[str, str]:
    """Return the packages and versions of each contender, as text by contender."""
    versions = {}
    for contender in contenders:
        packages = _read_versions(contender.python(environments), contender.packages)
        versions[contender.name] = ", ".join(f"{name} {version}" for name, version in packages.items())
    return versions


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores ({model}), Python {platform.python_version()}, {wrk_version()}"


def _read_versions(python: Path, packages: Sequence[str]) -> Mapping[str, str]:
    try:
        process = subprocess.run([python, "-c", _SCRIPT, *packages], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}  # the contender then fails to start, with a message
    versions: Mapping[str, str] = json.loads(process.stdout)
    return versions
