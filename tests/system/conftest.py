from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.local_service import Service, free_port
from tests.support.tiny_bundle import tiny_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def service(bundle: Path) -> Iterator[Service]:
    """One service of two replicas, for tests that leave it unchanged."""
    started = Service(bundle, free_port())
    yield started
    if started.process.poll() is None:
        started.stop()
