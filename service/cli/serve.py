"""`heed serve` and `heed tune`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import structlog
import typer

from models.tasks import TASKS
from service.cli.command import describe_data_dir, fail, log, read_settings, require_runtime, stop_on_signals
from service.cluster.local import Cluster, max_connections
from service.cluster.preflight import ClusterError, check_open_files, check_port_is_free
from service.telemetry import logs

_log = structlog.get_logger(__name__)


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
    from service.cluster import haproxy
    from service.start_checks import check_data_folder, check_models

    chosen = read_settings(host=host, port=port, sentiment_bundle=bundle and bundle.resolve(), replicas=replicas)
    require_runtime(chosen.device)
    if haproxy.find_haproxy() is None:
        fail(haproxy.describe_missing())
    try:
        check_open_files(max_connections())
        check_data_folder(chosen)
        check_port_is_free(chosen.host, chosen.port)
        names = check_models(chosen)
    except (BundleError, ArtifactError, ClusterError, RuntimeError) as error:
        fail(error)
    if chosen.log_format == "console" and {"intent", "recommend"} & chosen.bundles.keys():
        print(describe_data_dir(chosen.data_dir), flush=True)
    host_of_url = f"[{chosen.host}]" if ":" in chosen.host else chosen.host
    _run(Cluster(chosen), " and ".join(names), f"http://{host_of_url}:{chosen.port}", list(chosen.bundles))


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
    from service.tuning.throughput import ThroughputError
    from service.tuning.tuner import HEADER, TuneError, TuningRun, busy_warning, free_memory_bytes, usable_cores
    from service.tuning.tuner import tune as measure

    stop_on_signals()
    chosen = read_settings(sentiment_bundle=bundle and bundle.resolve())
    try:
        used = usable_cores(cores)
    except TuneError as error:
        fail(error, 2)
    require_runtime(chosen.device)
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


def _print(line: str, _: str, **__: object) -> None:
    print(line, flush=True)


def _record(_: str, event: str, **fields: object) -> None:
    """Log what `_print` prints, so that standard output has nothing but records."""
    _log.info(event, **fields)


def _examples(address: str, tasks: list[str]) -> str:
    header = "-H 'Content-Type: application/json'"
    return "".join(f"\n  curl {address}/v1/{task} {header} -d '{TASKS[task].example}'\n" for task in tasks)


def _run(cluster: Cluster, models: str, address: str, tasks: list[str]) -> None:
    """Start the service, print how to reach it, wait and stop.

    Ctrl-C and SIGTERM end it with exit code 0, a failure with 1.
    """
    stop_on_signals()
    configured = cluster.settings
    logs.configure("serve", configured.log_level, configured.log_format, configured.metrics_dir)
    tell = _print if configured.log_format == "console" else _record
    failure: ClusterError | None = None
    try:
        folder = str(configured.data_dir)
        tell(f"Starting {models} on {address} ...", "starting", models=models, address=address, data_dir=folder)
        started_s = time.monotonic()
        cluster.start()
        seconds = round(time.monotonic() - started_s, 1)
        ready = f"Ready after {seconds:.0f} s; Ctrl-C stops. Documentation: {address}/docs. Try:"
        tell(f"{ready}\n{_examples(address, tasks)}", "ready", seconds=seconds)
        cluster.wait()
    except KeyboardInterrupt:
        tell("\nStopping ...", "stopping")
    except ClusterError as error:
        failure = error
        _log.critical("service failed", reason=str(error))
    finally:
        cluster.stop()
    if failure is not None:
        fail(failure)
