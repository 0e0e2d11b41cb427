"""The setup of the serving and the ablation benchmark: their common options, the bundle and the inputs."""

from __future__ import annotations

import argparse
import os
import signal
from http.client import HTTPException
from pathlib import Path
from subprocess import SubprocessError

from models.bundle import SHIPPED, Bundle, load_bundle
from models.text.tokenizer import Tokenizer
from tests.bench.harness.closed_loop import MISSING, LoadError, wrk_version
from tests.bench.harness.processes import NotStartedError
from tests.bench.serving import texts
from tests.bench.serving.expected_labels import compute_expected_labels
from tests.bench.serving.session import CHECKED, Inputs

CORES = len(os.sched_getaffinity(0))
# A failure of a server, or of a process of the limit, ends its own turn. The other turns go on.
FAILURES = (NotStartedError, LoadError, OSError, ValueError, HTTPException, SubprocessError)
_TEXTS = 512


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the common options."""
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each data set")
    parser.add_argument("--bundle", type=Path, default=SHIPPED, help="folder of the model")
    parser.add_argument("--out", type=Path, default=Path(f"runs/{parser.prog}"), help="folder of the report")


def parse_options(parser: argparse.ArgumentParser, folders: tuple[str, ...]) -> argparse.Namespace:
    """Return the options, with absolute paths for the folders because servers run in another folder."""
    options = parser.parse_args()
    for name in folders:
        setattr(options, name, getattr(options, name).absolute())
    return options


def prepare(name: str, options: argparse.Namespace) -> tuple[Bundle, Inputs]:
    """Return the bundle and the inputs. Raise SystemExit if something is missing."""
    if wrk_version() is None:
        raise SystemExit(MISSING)
    try:
        bundle = load_bundle(options.bundle)
        sets = texts.read(options.data, Tokenizer.from_bundle(bundle), _TEXTS)
        options.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{name}: {error}") from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an interrupted turn still ends its processes
    return bundle, Inputs(sets, compute_expected_labels(bundle, sets["short"].texts[:CHECKED]))
