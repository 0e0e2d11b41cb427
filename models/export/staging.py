"""What every export does: build a bundle in a folder beside its place, check each graph, and publish it by a rename.

So a bundle is there whole or not at all, and an export that fails leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfile, copytree, rmtree

from models.bundle import CARD, GRAPH, TOKENIZER, Bundle, Manifest, Source, file_digest, load_bundle, save_bundle
from models.graph.builder import build_graph, save_graph
from models.graph.writer import Precision
from models.networks.encoder import Network, base_file, graph_weights
from models.runtime.cuda import GPU_GRAPH_LABEL, to_fp16
from models.runtime.onnx import OnnxRuntime
from models.tasks import Task
from models.training.trainer import WEIGHTS

STAGING_SUFFIX = ".building"


@contextmanager
def staging(out: Path, run: Path | None = None, start: Path | None = None) -> Iterator[Path]:
    """A folder beside `out` to build its bundle in: with a training folder's tokenizer, or all of another bundle."""
    building = out.with_name(out.name + STAGING_SUFFIX)
    rmtree(building, ignore_errors=True)
    try:
        if start is None:
            building.mkdir(parents=True)
        else:
            copytree(start, building)
        if run is not None:
            copyfile(run / TOKENIZER, building / TOKENIZER)
        yield building
    finally:
        rmtree(building, ignore_errors=True)


def publish(building: Path, out: Path, manifest: Manifest, card: str) -> Bundle:
    """All of `building` in the place of `out`, once the manifest holds."""
    (building / CARD).write_text(card, encoding="utf-8")
    save_bundle(building, manifest)
    rmtree(out, ignore_errors=True)
    building.rename(out)
    return load_bundle(out)


def write_graph(network: Network, storage: Precision, building: Path) -> None:
    config = network.encoder.config
    if config.hidden_act != "gelu":
        raise ValueError(f"the base uses {config.hidden_act}: only encoders of the BERT family with gelu are exported")
    weights = graph_weights(network)
    save_graph(build_graph(weights, config.num_attention_heads, config.layer_norm_eps, storage), building / GRAPH)


def open_runtimes(building: Path) -> Iterator[tuple[str, OnnxRuntime]]:
    """Each way in which the graph serves, and what cards call it."""
    yield GRAPH, OnnxRuntime(building / GRAPH, threads=0)
    yield GPU_GRAPH_LABEL, OnnxRuntime(to_fp16(building / GRAPH), threads=0)


def check_graphs(
    building: Path, check: Callable[[str, OnnxRuntime], str], say: Callable[[str], None]
) -> tuple[list[str], OnnxRuntime]:
    """What `check`, which may raise, says of each way in which the graph serves; and the runtime on a CPU."""
    ways = dict(open_runtimes(building))
    said = []
    for name, runtime in ways.items():
        said.append(check(name, runtime))
        say(said[-1])
    return said, ways[GRAPH]


def make_manifest(
    name: str, version: str, task: Task, base: str, languages: Sequence[str], sources: Sequence[Source]
) -> Manifest:
    """Of a trained network on the encoder `base`; what is measured of it comes later."""
    return Manifest(
        name=name,
        version=version,
        task=task,
        languages=tuple(languages),
        max_tokens=task.max_tokens,
        base=Path(base).name,
        base_digest=file_digest(base_file(base, WEIGHTS)),
        calibration={},
        sources=tuple(sources),
        metrics=(),
    )
