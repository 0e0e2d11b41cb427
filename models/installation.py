"""The packages that Heed needs, and the command that installs the missing ones. Imports none of them.

The requirements come from the metadata of the installed package, so `pyproject.toml` is their only home. Commands name
them exactly, because Heed is in no package index and `pip install heed` would find another project.
"""

from __future__ import annotations

import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec

EXTRAS = ("cpu", "train", "gpu", "track")
"""The extras that commands use. The first that has a package is the one to name."""

_MODULES = {"onnxruntime-gpu": "onnxruntime", "scikit-learn": "sklearn"}
"""Modules whose name is not that of their package."""

_REQUIREMENT = re.compile(
    r"""(?P<pinned>(?P<package>[\w.-]+)[^;]*?)\s*(?:;\s*extra\s*==\s*["'](?P<extra>[\w-]+)["'])?"""
)


class MissingPackageError(RuntimeError):
    """A package is missing. The message is one line with the command that installs it."""

    def __init__(self, purpose: str, modules: list[str], extra: str) -> None:
        known = requirements_of(extra)
        wanted = [known.get(module, module) for module in modules]
        names = " and ".join([", ".join(modules[:-1]), modules[-1]] if len(modules) > 1 else modules)
        verb = "is" if len(modules) == 1 else "are"
        super().__init__(f"{purpose} needs {names}, which {verb} missing; run: {install_command(wanted)}")


def requirements_of(extra: str = "") -> dict[str, str]:
    """Return the requirements of an extra, or of Heed itself, by the module that each of them installs.

    The dictionary is empty if Heed runs from its source without being installed.
    """
    try:
        lines = requires("heed") or []
    except PackageNotFoundError:
        return {}
    parsed = [match for line in lines if (match := _REQUIREMENT.fullmatch(line))]
    return {
        _MODULES.get(match["package"], match["package"].replace("-", "_")): match["pinned"]
        for match in parsed
        if (match["extra"] or "") == extra
    }


def is_installed(module: str) -> bool:
    """Return whether a module can be imported. A folder that an old package left behind is none."""
    spec = find_spec(module)
    return spec is not None and spec.origin is not None


def require_installed(purpose: str, *modules: str, extra: str = "") -> None:
    """Raise MissingPackageError, which names all modules that are missing. The extra is the one that has them."""
    missing = [module for module in modules if not is_installed(module)]
    if missing:
        raise MissingPackageError(purpose, missing, extra)


def install_command(requirements: list[str]) -> str:
    """Return the command that installs requirements for this interpreter, ready for a shell."""
    return shlex.join([sys.executable, "-m", "pip", "install", *requirements])
