"""Python runs this at the start of every process that has this folder on its PYTHONPATH: turns one lever off there."""

import os

from tests.bench.ablation import patches

try:
    patches.install(os.environ[patches.LEVER], os.environ[patches.MARKS])
except Exception as error:  # Python would print it and go on with the lever on
    raise SystemExit(f"bench-ablation: {error!r}") from error
