"""Threads that work beside what serves, and come after it."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

_NICENESS = 10


def lower_thread_priority() -> None:
    """Lower the priority of this thread: Linux has a niceness for each. Where that is refused, it stays as it is."""
    thread = threading.get_native_id()
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)
