"""The entry points of `heed` and of `serve deploy`. They name missing packages before anything imports them.

This imports nothing that Heed needs to have installed.
"""

from __future__ import annotations

import sys
from typing import Any

from models.installation import MissingPackageError, require_installed, requirements_of


def main() -> None:
    """Run the command `heed`, or exit with one line if packages that every command needs are missing."""
    try:
        require_installed("Heed", *requirements_of())
    except MissingPackageError as error:
        sys.exit(f"heed: {error}")
    from service.cli.main import main as run_command

    run_command()


def build(args: dict[str, Any]) -> Any:
    """Return the application for `serve deploy`, like `service.app:build`.

    Raises MissingPackageError, SettingsError or ClusterError, in one line, if it could not start.
    """
    require_installed("Heed", *requirements_of())
    from service.app import build as build_application

    return build_application(args)
