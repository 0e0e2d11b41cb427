"""The time that a request has waited in HAProxy before the application got it.

HAProxy stamps each request with its clock, and overwrites what a client sent under that name. The stamp counts only
where `heed serve` said that HAProxy is its own and on this machine, because clocks of machines differ.
"""

from __future__ import annotations

import os
import re
import time

from starlette.requests import Request

from service.cluster.ingress import ARRIVAL_HEADER, SAME_CLOCK_VARIABLE

_NAME = ARRIVAL_HEADER.lower().encode()
_MICROSECONDS = re.compile(rb"[1-9][0-9]{0,17}")


def waited_s(request: Request, max_s: float) -> float:
    """Return the seconds since HAProxy had the request, or 0 if that is unknown.

    Stamps of the future, or older than `max_s`, mean that the clock was set. They count as unknown.
    """
    if SAME_CLOCK_VARIABLE not in os.environ:
        return 0.0
    stamps = [value for name, value in request.scope["headers"] if name == _NAME]
    if len(stamps) != 1 or not _MICROSECONDS.fullmatch(stamps[0]):
        return 0.0
    seconds = time.time() - int(stamps[0]) / 1e6
    return seconds if 0 < seconds <= max_s else 0.0
