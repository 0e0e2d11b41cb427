"""The time that a request has waited in HAProxy before the application got it.

HAProxy stamps each request with its clock, and overwrites what a client sent under that name. The stamp counts only if
the settings say that HAProxy is on this machine, because clocks of machines differ.
"""

from __future__ import annotations

import re
import time

from starlette.requests import Request

from service.cluster.ingress import ARRIVAL_HEADER
from service.settings import Settings

_NAME = ARRIVAL_HEADER.lower().encode()
_MICROSECONDS = re.compile(rb"[1-9][0-9]{0,17}")


def waited_s(request: Request, settings: Settings) -> float:
    """Return the seconds since HAProxy had the request, or 0 if that is unknown.

    Stamps of the future, or older than a request can become, mean that the clock was set. They count as unknown.
    """
    if not settings.same_machine:
        return 0.0
    stamps = [value for name, value in request.scope["headers"] if name == _NAME]
    if len(stamps) != 1 or not _MICROSECONDS.fullmatch(stamps[0]):
        return 0.0
    seconds = time.time() - int(stamps[0]) / 1e6
    return seconds if 0 < seconds <= settings.request_timeout_s + settings.gateway_queue_s else 0.0
