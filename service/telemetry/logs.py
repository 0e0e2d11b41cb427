"""Logs of the service: one JSON object per line on standard error, so that no value can forge a line.

The service logs only its own words, types and numbers, never a caller's text.
"""

from __future__ import annotations

import logging
import sys

import structlog


def configure(level: str) -> None:
    """Log events of `level` ("debug" to "error") and above. Call this once per process."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
