"""The benchmark of a GPU, on the CPU: that it runs, counts rightly and refuses plainly. It shows no figure of a GPU."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.bundle import GRAPH, Bundle, load_bundle
from models.export.torch_runtime import TorchRuntime
from models.graph.builder import build_graph, save_graph
from models.graph.names import LOG_STEP
from models.networks.graph_network import Shape, load_graph_classifier
from models.runtime.cuda import to_fp16
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import Batch
from tests.bench import gpu
from tests.support.tiny_bundle import HEADS, INNER, LAYERS, PIECES, WIDTH, tiny_bundle, weights


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.mark.skipif(gpu.available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"bench-gpu: {gpu.ABSENT}\n"


def test_on_the_cpu_it_measures_everything_and_claims_nothing(tiny: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "cpu", "--bundle", str(tiny.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == gpu.TINY
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    assert rows[1:3] == ["16", "64"]
    assert [row.partition(",")[0] for row in rows[4:]] == [
        *["engine"] * 3,
        "plain transformers fp16",
        "ONNX Runtime fp16",
    ]
    (agreement,) = [line for line in lines if "the same label" in line]
    assert float(agreement.partition(": ")[2].partition("%")[0]) >= 97.5  # of 40 texts, one may differ


def test_the_network_of_a_graph_is_the_one_it_was_written_from(tiny: Bundle) -> None:
    network, shape = load_graph_classifier(tiny.graph)
    assert shape == Shape(LAYERS, WIDTH, INNER, HEADS)
    assert network.encoder.config._attn_implementation == "sdpa"  # the fused one, by default of transformers
    for name, value in weights().items():
        np.testing.assert_allclose(network.state_dict()[name].numpy(), value, atol=0.01, err_msg=name)
    ids = np.random.default_rng(1).integers(4, len(PIECES), (3, 20))
    batch = Batch(ids, np.ones_like(ids), np.zeros_like(ids))
    np.testing.assert_allclose(TorchRuntime(network).run(batch), OnnxRuntime(to_fp16(tiny.graph)).run(batch), atol=0.02)


def test_inputs_are_cut_where_the_graph_of_a_rounded_network_cuts_them(tmp_path: Path) -> None:
    own = weights()
    linear = [name.removesuffix(".weight") for name in own if re.search(r"(query|key|value|dense)\.weight", name)]
    steps = {f"{name}.{LOG_STEP}": np.asarray(np.log(0.004), np.float32) for name in linear}
    save_graph(build_graph(own | steps, HEADS, 1e-12, "int8"), tmp_path / GRAPH)
    ids = np.random.default_rng(1).integers(4, len(PIECES), (3, 20))
    batch = Batch(ids, np.ones_like(ids), np.zeros_like(ids))
    network, _ = load_graph_classifier(tmp_path / GRAPH)
    np.testing.assert_allclose(
        TorchRuntime(network).run(batch), OnnxRuntime(to_fp16(tmp_path / GRAPH)).run(batch), atol=0.02
    )


def test_operations_are_those_that_torch_counts(tiny: Bundle) -> None:
    """But for the head and the pooling, which the formula leaves out."""
    network, shape = load_graph_classifier(tiny.graph)
    ids = torch.full((1, 64), 5)
    unfused = sdpa_kernel(SDPBackend.MATH)  # the counter does not know the fused one of a CPU
    with unfused, torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network.states(ids, torch.ones_like(ids), torch.zeros_like(ids))
    assert counter.get_total_flops() == gpu.operations(shape, 64)


class Fixed:
    """Always the same logits."""

    def __init__(self, logits: list[float]) -> None:
        self.logits = logits

    def run(self, batch: Batch) -> NDArray[np.float32]:
        return np.tile(np.asarray(self.logits, np.float32), (len(batch.ids), 1)) * batch.token_types[:, :1]


def test_labels_are_compared_text_by_text(tiny: Bundle) -> None:
    texts = gpu.made_up(gpu.Bench("cpu", gpu.SIZES["cpu"], tiny, 1), [8, 8, 8, 8])
    texts[0].token_types[:] = 1  # the others have no likeliest label and agree
    assert gpu.same_labels(Fixed([1, 0, 0]), Fixed([0, 0, 1]), texts, 1) == 0.75
    assert gpu.same_labels(Fixed([1, 0, 0]), Fixed([2, 0, 1]), texts, 1) == 1
