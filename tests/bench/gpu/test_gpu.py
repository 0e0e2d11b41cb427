"""The benchmark of a GPU, on the CPU: that it runs, counts rightly and refuses plainly. It shows no figure of a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.bundle import Bundle, load_bundle
from models.networks.graph_network import load_graph_classifier
from models.text.encoding import Batch
from tests.bench.gpu import __main__ as gpu
from tests.support.tiny_bundle import tiny_bundle

pytestmark = pytest.mark.slow


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
