"""The resources that the deployments request from Ray. No cluster is started."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from ray import serve

from service.app import build
from service.cluster.remote import CALLS_PER_REPLICA

DEPLOY = Path(__file__).parent.parent.parent / "deploy"


def args_of(name: str) -> dict[str, Any]:
    (application,) = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))["applications"]
    args: dict[str, Any] = application["args"]
    return args


def deployments(args: Mapping[str, Any]) -> dict[str, serve.Deployment]:
    """Return the deployments by name. A deployment is bound to those it calls."""
    gateway = build(args)._bound_deployment
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
