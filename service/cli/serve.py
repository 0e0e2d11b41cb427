"""`heed serve` and `heed tune`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from models.tasks import TASKS
from service.cli.command import fail, log, stop_on_signals
from service.cluster.local import Cluster, max_connections
from service.cluster.preflight import ClusterError, check_data_dir, check_open_files, check_port_is_free
from service.settings import Settings, SettingsError

_OPTIONS = {"host": "--host", "port": "--port", "sentiment_bundle": "--bundle", "replicas": "--replicas"}
"""The options of `heed serve` by the setting that they override."""


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (HEED_HOST, 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (HEED_PORT, 8000).")] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Folder of the sentiment model (HEED_SENTIMENT_BUNDLE). The default is the shipped one."),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(help="Number of processes (HEED_REPLICAS). The default is one per core, at most 4.")
    ] = None,
) -> None:
    """Serve the models on this machine until Ctrl-C. Environment variables set the rest: docs/settings.md."""
    from models.bundle import BundleError
    from models.prediction.tensor_file import ArtifactError
    from models.runtime.auto import require_runtime
    from service import settings
    from service.cluster import haproxy
    from service.registry.catalogues import FOLDER as CATALOGUES

    options = {"host": host, "port": port, "sentiment_bundle": bundle and bundle.resolve(), "replicas": replicas}
    try:
        chosen = settings.load_settings(**options)
    except SettingsError as error:
        fail(error if options.get(error.name) is None else error.for_option(_OPTIONS[error.name]), 2)
    try:
        require_runtime(chosen.device)
        check_open_files(max_connections())
        if chosen.data_dir is not None and {"intent", "recommend"} & chosen.bundles.keys():
            check_data_dir(chosen.data_dir, *([CATALOGUES] if "recommend" in chosen.bundles else []))
        names = _verify(chosen)
        check_port_is_free(chosen.host, chosen.port)
    except (BundleError, ArtifactError, ClusterError, RuntimeError) as error:
        fail(error)
    if haproxy.find_haproxy() is None:
        fail(haproxy.MISSING)
    _run(Cluster(chosen), " and ".join(names), f"http://{chosen.host}:{chosen.port}", list(chosen.bundles))


def _verify(chosen: Settings) -> list[str]:
    """Return the names and versions of the models. Raises if any of them cannot be served."""
    from models.bundle import BundleError, load_bundle
    from models.ranking.bundle_files import load_recommender
    from service.registry.heads import HeadRegistry

    names = []
    for task, path in chosen.bundles.items():
        bundle = load_bundle(path)
        if bundle.task.name != task:
            raise BundleError(f"bundle {path.name}: it is a model of {bundle.task.name}, not of {task}")
        if task == "intent":
            heads = HeadRegistry(bundle, chosen.data_dir).scan_heads()
            if chosen.label_set not in heads:
                raise BundleError(f"HEED_LABEL_SET={chosen.label_set}: the label sets are {', '.join(sorted(heads))}")
        if task == "recommend":
            load_recommender(bundle)
        names.append(f"{bundle.name} {bundle.version}")
    return names


def tune(
    bundle: Annotated[
        Path | None,
        typer.Option(help="Folder of the sentiment model (HEED_SENTIMENT_BUNDLE). The default is the shipped one."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="Duration of each measurement. There are about a dozen.", min=0.1)
    ] = 4.0,
    cores: Annotated[int | None, typer.Option(help="Cores to use. The default is all of this machine.", min=1)] = None,
) -> None:
    """Measure this machine and print the settings that suit it."""
    from models.bundle import BundleError, load_bundle
    from service import settings
    from service.tuning.throughput import ThroughputError
    from service.tuning.tuner import HEADER, TuneError, TuningRun, busy_warning, free_memory_bytes, usable_cores
    from service.tuning.tuner import tune as measure

    stop_on_signals()
    try:
        chosen = settings.load_settings(sentiment_bundle=bundle and bundle.resolve())
        used = usable_cores(cores)
    except (SettingsError, TuneError) as error:
        fail(error, 2)
    try:
        served = load_bundle(next(iter(chosen.bundles.values())))
        for line in (f"{served.name} {served.version}, {used} cores, {chosen.device}", busy_warning(used), HEADER):
            if line:
                log(line)
        recommended = measure(TuningRun(served, chosen, seconds, log), used, free_memory_bytes())
    except (BundleError, ThroughputError, TuneError) as error:
        fail(error)
    except KeyboardInterrupt:
        fail("stopped", 130)
    print("\n".join(f"HEED_{name.upper()}={value}" for name, value in recommended.items()))


def _run(cluster: Cluster, models: str, address: str, tasks: list[str]) -> None:
    """Start the service, print how to reach it, wait and stop.

    Ctrl-C and SIGTERM end it with exit code 0, a failure with 1.
    """
    stop_on_signals()
    failure: ClusterError | None = None
    try:
        print(f"Starting {models} on {address} ...", flush=True)
        started_s = time.monotonic()
        cluster.start()
        print(f"Ready after {time.monotonic() - started_s:.0f} s; Ctrl-C stops. Documentation: {address}/docs. Try:\n")
        for task in tasks:
            print(
                f"  curl {address}/v1/{task} -H 'Content-Type: application/json' -d '{TASKS[task].example}'\n",
                flush=True,
            )
        cluster.wait()
    except KeyboardInterrupt:
        print("\nStopping ...", flush=True)
    except ClusterError as error:
        failure = error
    finally:
        cluster.stop()
    if failure is not None:
        fail(failure)
