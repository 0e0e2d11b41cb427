"""What the deployments ask of Ray; no cluster is started."""

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
    """By name; a deployment is bound to those it calls."""
    gateway = build(args)._bound_deployment
    called = [given._bound_deployment for given in gateway.init_args if isinstance(given, serve.Application)]
    return {deployment.name: deployment for deployment in (gateway, *called)}


def asked(deployment: serve.Deployment) -> dict[str, Any]:
    options: dict[str, Any] = deployment.ray_actor_options
    return {name: options.get(name) for name in ("num_cpus", "num_gpus", "resources")}


def test_inline_there_is_one_deployment() -> None:
    found = deployments(args_of("serve.yaml"))
    assert {name: asked(one) for name, one in found.items()} == {
        "gateway": {"num_cpus": 1, "num_gpus": 0, "resources": None}
    }
    found = deployments(args_of("serve.yaml") | {"device": "cuda"})
    assert asked(found["gateway"])["num_gpus"] == 0.5


@pytest.mark.parametrize("gpus", [0.25, 1, 2])
def test_on_gpus_the_model_asks_for_them_and_gateways_for_none(gpus: float) -> None:
    found = deployments(args_of("serve.gpu.yaml") | {"model_gpus": gpus})
    model = {"num_cpus": 0, "num_gpus": gpus, "resources": {"heed_model": 0.001}}
    assert {name: asked(one) for name, one in found.items()} == {
        "gateway": {"num_cpus": 1, "num_gpus": 0, "resources": None},
        **{f"{task}-model": model for task in ("sentiment", "intent", "recommend")},
    }


def test_one_gpu_has_room_for_the_models_that_ship() -> None:
    asks = [asked(one)["num_gpus"] for one in deployments(args_of("serve.gpu.yaml")).values()]
    assert sum(asks) <= 1


def test_on_cpus_a_remote_model_asks_for_no_gpu_and_no_certain_node() -> None:
    found = deployments({"placement": "remote", "device": "cpu", "intent_bundle": "none", "recommend_bundle": "none"})
    assert asked(found["sentiment-model"]) == {"num_cpus": 1, "num_gpus": 0, "resources": {}}


def test_a_model_scales_between_its_bounds_before_the_calls_of_all_gateways_are_under_way() -> None:
    scaling = deployments(args_of("serve.gpu.yaml"))["sentiment-model"]._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 3)
    assert 0 < scaling.target_ongoing_requests < CALLS_PER_REPLICA * 2  # of two gateways
