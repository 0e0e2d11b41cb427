"""A Ray cluster of two nodes on this machine: gateways on the first, the model on the second, which can be killed.

As a program, this module is the process that holds the cluster. It obeys commands of one word per line, which `Nodes`
sends. Only the second node offers the resource that models need. It offers no core, so that gateways stay off it.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from tests.support.local_service import Client, command_of, free_port

RESOURCE = "heed_model"
TIMEOUT_S = 6.0
REPLY_TIMEOUT_S = 180.0


class Nodes:
    """The cluster. Call `wait_ready` before any other method, and always `stop`."""

    def __init__(self, bundle: Path) -> None:
        self.port = free_port()
        self.client = Client(self.port)
        self._folder = Path(tempfile.mkdtemp(prefix="n", dir="/tmp"))
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.two_nodes", str(self._folder), str(self.port), str(bundle)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=Path(__file__).parent.parent.parent,
            )

    def wait_ready(self) -> None:
        assert self._read_reply() == "ready"

    def kill(self) -> None:
        """Kill all processes of the model's node together, as a power failure does."""
        self._command("kill")

    def join(self) -> None:
        self._command("join")

    def replicas(self) -> int:
        return int(self._command("replicas"))

    def gateways_hold_a_runtime(self) -> bool:
        gateways = [p for p in self._processes() if "ServeReplica:heed:gateway" in command_of(p)]
        assert gateways
        return any("onnxruntime" in mapping.path for process in gateways for mapping in process.memory_maps())

    def stop(self) -> None:
        self.client.__exit__()
        processes = self._processes()
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            assert self._process.stdout is not None
            self._process.stdout.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _processes(self) -> list[psutil.Process]:
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]

    def _command(self, word: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return self._read_reply()

    def _read_reply(self) -> str:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], REPLY_TIMEOUT_S)
        line = self._process.stdout.readline() if readable else ""
        assert line, (self._folder / "log").read_text()
        return line.strip()


def main(folder: Path, port: int, bundle: Path) -> None:
    """Hold the cluster. The environment must be complete before Ray is imported."""
    from service.cluster import local as cluster
    from service.settings import load_settings

    settings = load_settings(
        port=port,
        sentiment_bundle=bundle,
        intent_bundle="none",
        recommend_bundle="none",
        replicas=1,
        placement="remote",
        model_cpus=0,
        model_resource=RESOURCE,
        request_timeout_s=TIMEOUT_S,
        metrics_dir=folder / "metrics",
    )
    os.environ.update(cluster.build_environment(settings, folder, os.environ))
    reply = _reply_channel()

    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    from service import app
    from service.cluster import ray_workarounds

    ray_workarounds.bind_to_loopback()
    common = {"node_ip_address": "127.0.0.1", "include_dashboard": False, "object_store_memory": 80 * 2**20}
    nodes = Cluster(True, head_node_args={"num_cpus": 1, "temp_dir": str(folder / "ray"), **common})
    models = {"num_cpus": 0, "resources": {RESOURCE: 1}, **common}
    node = nodes.add_node(**models)
    ray.init(address=nodes.address, _node_ip_address="127.0.0.1", log_to_driver=False)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(app.build({}), name="heed", route_prefix="/")
    reply("ready")
    for line in sys.stdin:
        if line == "kill\n":
            _kill(node.all_processes["raylet"][0].process.pid)
            nodes.remove_node(node, allow_graceful=False)
            reply("killed")
        elif line == "join\n":
            node = nodes.add_node(**models)
            reply("joined")
        elif line == "replicas\n":
            states = serve.status().applications["heed"].deployments["sentiment-model"].replica_states
            reply(str(states.get("RUNNING", 0)))
    serve.shutdown()
    ray.shutdown()
    nodes.shutdown()


def _reply_channel() -> Callable[[str], None]:
    """Return a function that prints replies. The standard output carries only them: libraries print to the log."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return lambda line: print(line, file=channel)


def _kill(raylet: int) -> None:
    process = psutil.Process(raylet)
    for member in [process, *process.children(recursive=True)]:
        member.kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
