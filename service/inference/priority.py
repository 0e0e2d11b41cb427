"""The priority of background threads, which must not slow down serving."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

_NICENESS = 10


def lower_thread_priority() -> None:
    """Lower the priority of the calling thread, where Linux has a niceness per thread.

    If the system refuses, the priority does not change.
    """
    thread = threading.get_native_id()
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)
