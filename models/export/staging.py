"""The steps that all exports share: build a bundle in a staging folder, check each graph, and publish by a rename.

A bundle is therefore complete or absent, and a failed export leaves nothing behind.
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
    """Yield a folder beside `out` to build in. It starts with the tokenizer of `run`, or as a copy of `start`."""
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
    """Write the card and the manifest, verify them, and move `building` to `out`."""
    (building / CARD).write_text(card, encoding="utf-8")
    save_bundle(building, manifest)
    rmtree(out, ignore_errors=True)
    building.rename(out)
    return load_bundle(out)


def write_graph(network: Network, storage: Precision, building: Path) -> None:
    """Write the graph of a network. Raises ValueError if its encoder cannot be exported."""
    config = network.encoder.config
    if config.hidden_act != "gelu":
        raise ValueError(
            f"the base uses {config.hidden_act}: only encoders of the BERT family with gelu can be exported"
        )
    weights = graph_weights(network)
    save_graph(build_graph(weights, config.num_attention_heads, config.layer_norm_eps, storage), building / GRAPH)


def open_runtimes(building: Path) -> Iterator[tuple[str, OnnxRuntime]]:
    """Yield each form in which the graph serves, with the name that cards use."""
    yield GRAPH, OnnxRuntime(building / GRAPH, threads=0)
    yield GPU_GRAPH_LABEL, OnnxRuntime(to_fp16(building / GRAPH), threads=0)


def check_graphs(
    building: Path, check: Callable[[str, OnnxRuntime], str], log: Callable[[str], None]
) -> tuple[list[str], OnnxRuntime]:
    """Check each form in which the graph serves. Return the reports of `check` and the runtime on a CPU.

    `check` may raise.
    """
    runtimes = dict(open_runtimes(building))
    reports = []
    for name, runtime in runtimes.items():
        reports.append(check(name, runtime))
        log(reports[-1])
    return reports, runtimes[GRAPH]


def make_manifest(
    name: str, version: str, task: Task, base: str, languages: Sequence[str], sources: Sequence[Source]
) -> Manifest:
    """Return the manifest of a network trained from the encoder `base`, still without figures."""
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
