"""The resources that the deployments request from Ray, and the checks before them. No cluster is started."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from ray import serve

from models.bundle import GRAPH
from models.installation import MissingPackageError
from service.app import GatewayDeployment, application_of, build
from service.cluster.preflight import ClusterError
from service.cluster.remote import CALLS_PER_REPLICA
from service.entry import build as build_checked
from service.settings import SettingsError, load_settings
from tests.support.tiny_bundle import tiny_bundle, tiny_intent_bundle

DEPLOY = Path(__file__).parent.parent.parent / "deploy"


def args_of(name: str) -> dict[str, Any]:
    (application,) = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))["applications"]
    args: dict[str, Any] = application["args"]
    return args


def deployments(args: Mapping[str, Any]) -> dict[str, serve.Deployment]:
    """Return the deployments by name. A deployment is bound to those it calls."""
    gateway = application_of(load_settings(**args))._bound_deployment
    called = [argument._bound_deployment for argument in gateway.init_args if isinstance(argument, serve.Application)]
    return {deployment.name: deployment for deployment in (gateway, *called)}


def resources(deployment: serve.Deployment) -> dict[str, Any]:
    options: dict[str, Any] = deployment.ray_actor_options
    return {name: options.get(name) for name in ("num_cpus", "num_gpus", "resources")}


def test_inline_placement_has_one_deployment() -> None:
    inline = deployments(args_of("serve.yaml"))
    assert {name: resources(deployment) for name, deployment in inline.items()} == {
        "gateway": {"num_cpus": 1, "num_gpus": 0, "resources": None}
    }
    on_gpu = deployments(args_of("serve.yaml") | {"device": "cuda"})
    assert resources(on_gpu["gateway"])["num_gpus"] == 0.5


@pytest.mark.parametrize("gpus", [0.25, 1, 2])
def test_with_gpus_the_models_reserve_them_and_gateways_none(gpus: float) -> None:
    remote = deployments(args_of("serve.gpu.yaml") | {"model_gpus": gpus})
    model = {"num_cpus": 0, "num_gpus": gpus, "resources": {"heed_model": 0.001}}
    assert {name: resources(deployment) for name, deployment in remote.items()} == {
        "gateway": {"num_cpus": 1, "num_gpus": 0, "resources": None},
        **{f"{task}-model": model for task in ("sentiment", "intent", "recommend")},
    }


def test_the_shipped_models_fit_on_one_gpu() -> None:
    gpus = [resources(each)["num_gpus"] for each in deployments(args_of("serve.gpu.yaml")).values()]
    assert sum(gpus) <= 1


def test_with_cpus_a_remote_model_reserves_no_gpu_and_no_special_node() -> None:
    remote = deployments({"placement": "remote", "device": "cpu", "intent_bundle": "none", "recommend_bundle": "none"})
    assert resources(remote["sentiment-model"]) == {"num_cpus": 1, "num_gpus": 0, "resources": {}}


def test_a_model_scales_up_before_the_gateways_reach_their_bound_on_calls() -> None:
    scaling = deployments(args_of("serve.gpu.yaml"))["sentiment-model"]._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 3)
    assert 0 < scaling.target_ongoing_requests < CALLS_PER_REPLICA * 2  # of two gateways


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The settings of tiny bundles of sentiment and of intents."""
    folder = tmp_path_factory.mktemp("bundles")
    sentiment, intent = tiny_bundle(folder), tiny_intent_bundle(folder)
    return {"sentiment_bundle": str(sentiment), "intent_bundle": str(intent), "recommend_bundle": "none"}


@pytest.mark.parametrize("builder", [build, build_checked])
def test_a_deployment_that_can_start_is_built(
    bundles: dict[str, str], builder: Callable[[dict[str, Any]], serve.Application], tmp_path: Path
) -> None:
    for args in ({"label_set": "letters", "data_dir": "none"}, {"label_set": "of-a-team", "data_dir": str(tmp_path)}):
        assert builder(bundles | args)._bound_deployment.name == "gateway"


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"sentiment_bundle": "/nowhere"}, "HEED_SENTIMENT_BUNDLE: no bundle at /nowhere"),
        ({"intent_bundle": "/nowhere"}, "HEED_INTENT_BUNDLE: no bundle at /nowhere"),
        ({"intent_bundle": "sentiment_bundle"}, "it is a model of sentiment, not of intent"),
        ({"label_set": "leters"}, "HEED_LABEL_SET=leters: the label sets are .*letters"),
        ({"placement": "remote", "intent_bundle": "/nowhere"}, "HEED_INTENT_BUNDLE: no bundle at /nowhere"),
    ],
)
def test_a_deployment_that_could_not_start_is_refused_with_one_line(
    bundles: dict[str, str], args: dict[str, str], reason: str
) -> None:
    args = {name: bundles.get(value, value) for name, value in args.items()}
    with pytest.raises(ClusterError, match=reason) as refused:
        build(bundles | {"label_set": "letters", "data_dir": "none"} | args)
    assert "\n" not in str(refused.value)


def test_a_damaged_bundle_is_refused(bundles: dict[str, str], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(bundles["sentiment_bundle"], damaged)
    (damaged / GRAPH).write_bytes(b"")
    with pytest.raises(ClusterError, match=f"{GRAPH} was changed"):
        build(bundles | {"sentiment_bundle": str(damaged), "intent_bundle": "none"})


def test_a_setting_out_of_range_is_refused(bundles: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"HEED_REPLICAS=0: "):
        build(bundles | {"replicas": 0})


def test_missing_packages_are_named_with_the_command_that_installs_them(
    bundles: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = bundles | {"label_set": "letters", "data_dir": "none"}
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ClusterError, match="needs onnxruntime, which is missing; run: "):
        build(args)
    build(args | {"placement": "remote"})  # only replicas of models need it
    monkeypatch.setitem(sys.modules, "msgspec", None)
    with pytest.raises(MissingPackageError, match="Heed needs msgspec, which is missing; run: "):
        build_checked(args)


def test_a_gateway_refuses_a_data_folder_that_its_node_cannot_use(bundles: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = load_settings(**bundles, data_dir=tmp_path / "file")
    gateway: Any = object()  # a real one needs a cluster
    with pytest.raises(ClusterError, match=f"HEED_DATA_DIR={tmp_path}/file: .* is not a folder"):
        GatewayDeployment._build(gateway, settings, (), None)


def test_the_configurations_name_the_entry_point() -> None:
    for name in ("serve.yaml", "serve.gpu.yaml"):
        (application,) = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))["applications"]
        assert application["import_path"] == "service.entry:build"
