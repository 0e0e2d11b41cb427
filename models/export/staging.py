"""What every export does: build a bundle in a folder beside its place, check each graph, and publish it by a rename.

So a bundle is there whole or not at all, and an export that fails leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfile, copytree, rmtree

from models.bundle import CARD, GRAPH, TOKENIZER, Bundle, Manifest, Source, digest_of, load, save
from models.graph.builder import build, write
from models.graph.writer import Storage
from models.networks.encoder import Network, base_file, graph_weights
from models.runtime.cuda import ON_GPUS, in_16_bits
from models.runtime.onnx import OnnxRuntime
from models.tasks import Task
from models.training.trainer import WEIGHTS

SUFFIX = ".building"


@contextmanager
def staging(out: Path, run: Path | None = None, start: Path | None = None) -> Iterator[Path]:
    """A folder beside `out` to build its bundle in: with a training folder's tokenizer, or all of another bundle."""
    building = out.with_name(out.name + SUFFIX)
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
    save(building, manifest)
    rmtree(out, ignore_errors=True)
    building.rename(out)
    return load(out)


def write_graph(network: Network, storage: Storage, building: Path) -> None:
    config = network.encoder.config
    if config.hidden_act != "gelu":
        raise ValueError(f"the base uses {config.hidden_act}: only encoders of the BERT family with gelu are exported")
    weights = graph_weights(network)
    write(build(weights, config.num_attention_heads, config.layer_norm_eps, storage), building / GRAPH)


def runtimes(building: Path) -> Iterator[tuple[str, OnnxRuntime]]:
    """Each way in which the graph serves, and what cards call it."""
    yield GRAPH, OnnxRuntime(building / GRAPH, threads=0)
    yield ON_GPUS, OnnxRuntime(in_16_bits(building / GRAPH), threads=0)


def checked(
    building: Path, check: Callable[[str, OnnxRuntime], str], say: Callable[[str], None]
) -> tuple[list[str], OnnxRuntime]:
    """What `check`, which may raise, says of each way in which the graph serves; and the runtime on a CPU."""
    ways = dict(runtimes(building))
    said = []
    for name, runtime in ways.items():
        said.append(check(name, runtime))
        say(said[-1])
    return said, ways[GRAPH]


def manifest_of(
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
        base_digest=digest_of(base_file(base, WEIGHTS)),
        calibration={},
        sources=tuple(sources),
        metrics=(),
    )
