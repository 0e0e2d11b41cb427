"""A start-up hook that turns a lever off. Python runs it in every process with this folder on its PYTHONPATH."""

import os

from tests.bench.ablation import patches

try:
    patches.install(os.environ[patches.LEVER], os.environ[patches.MARKS])
except Exception as error:  # Python would print it and continue with the lever on
    raise SystemExit(f"bench-ablation: {error!r}") from error
