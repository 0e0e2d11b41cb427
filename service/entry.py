"""The entry point of `heed`. It names the packages that are missing before anything imports them.

It imports nothing that Heed needs to have installed.
"""

from __future__ import annotations

import sys

from models.installation import MissingPackageError, require_installed, requirements_of


def main() -> None:
    """Run the command `heed`, or exit with one line if packages that every command needs are missing."""
    try:
        require_installed("Heed", *requirements_of())
    except MissingPackageError as error:
        sys.exit(f"heed: {error}")
    from service.cli.main import main as run_command

    run_command()
