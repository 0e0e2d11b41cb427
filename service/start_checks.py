"""Checks of models and folders before a start, for `heed serve` and for `serve deploy`.

Each fails with one line that names the setting to change. The port, HAProxy and open files concern `heed serve` alone.
"""

from __future__ import annotations

from pathlib import Path

from models.bundle import Bundle, BundleError, load_bundle
from models.names import list_nearest
from models.prediction.tensor_file import ArtifactError
from models.ranking.bundle_files import load_recommender
from models.runtime.auto import require_runtime
from service.cluster.preflight import ClusterError, check_data_dir
from service.registry.catalogues import FOLDER
from service.registry.heads import HeadRegistry
from service.settings import Settings
from service.telemetry import logs


def check_deployment(settings: Settings) -> None:
    """Raise ClusterError if an application with these settings could not start on any node.

    Bundles lie at the same path on all nodes, so one node can check them. What differs between nodes, the data folder
    with its heads and the GPU, is checked by the replicas.
    """
    try:
        if settings.placement == "inline" and settings.device == "cpu":
            require_runtime(settings.device)
        check_models(settings, for_all_nodes=True)
    except (BundleError, ArtifactError, RuntimeError) as error:
        raise ClusterError(str(error)) from None


def check_data_folder(settings: Settings) -> None:
    """Raise ClusterError if the data folder is needed, and this process could not use it."""
    if settings.data_dir is not None and {"intent", "recommend"} & settings.bundles.keys():
        check_data_dir(settings.data_dir, *([FOLDER] if "recommend" in settings.bundles else []))


def check_models(settings: Settings, *, for_all_nodes: bool = False) -> list[str]:
    """Return the name and the version of each model. Raises BundleError or ArtifactError if one cannot be served.

    `for_all_nodes` leaves out what a data folder may hold on another node.
    """
    bundles = [_load_model(task, path, settings) for task, path in settings.bundles.items()]
    for bundle in bundles:
        if bundle.task.name == "intent" and (settings.data_dir is None or not for_all_nodes):
            _check_label_set(bundle, settings)
    return [f"{bundle.name} {bundle.version}" for bundle in bundles]


def _load_model(task: str, path: Path, settings: Settings) -> Bundle:
    """Return the bundle of a task. Raises if it cannot be served, naming the setting that chose it."""
    try:
        bundle = load_bundle(path)
    except BundleError as error:
        raise BundleError(f"{_source_of_bundle(task, settings)}{error}") from error
    if bundle.task.name != task:
        wrong = f"bundle {path.name}: it is a model of {bundle.task.name}, not of {task}"
        raise BundleError(f"{_source_of_bundle(task, settings)}{wrong}")
    if task == "recommend":
        load_recommender(bundle)
    return bundle


def _check_label_set(bundle: Bundle, settings: Settings) -> None:
    logs.silence()  # each gateway scans the files again, and logs those that cannot be used
    heads = HeadRegistry(bundle, settings.data_dir).scan_heads()
    if settings.label_set not in heads:
        listed = list_nearest(heads, settings.label_set)
        raise BundleError(f"HEED_LABEL_SET={settings.label_set}: the label sets are {listed}")


def _source_of_bundle(task: str, settings: Settings) -> str:
    """Return where the path of a model comes from, as the start of a message. A shipped model has no source."""
    name = f"{task}_bundle"
    if name not in settings.model_fields_set:
        return ""
    return "--bundle or HEED_SENTIMENT_BUNDLE: " if task == "sentiment" else f"HEED_{name.upper()}: "
