"""Tests of the GPU benchmark on the CPU: it runs, counts operations correctly and reports a missing GPU."""

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


@pytest.mark.skipif(gpu.gpu_available(), reason="there is a GPU")
def test_a_missing_gpu_is_reported_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"bench-gpu: {gpu.NO_GPU}\n"


def test_on_the_cpu_it_runs_everything_and_says_so(tiny: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "cpu", "--bundle", str(tiny.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == gpu.CPU_NOTE
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    assert rows[1:3] == ["16", "64"]
    assert [row.partition(",")[0] for row in rows[4:]] == [
        *["engine"] * 3,
        "plain transformers fp16",
        "ONNX Runtime fp16",
    ]
    (agreement,) = [line for line in lines if "the same label" in line]
    assert float(agreement.partition(": ")[2].partition("%")[0]) >= 97.5  # a label of the 40 texts may differ


def test_operations_equal_the_count_of_torch(tiny: Bundle) -> None:
    """The formula leaves out the head and the pooling."""
    network, shape = load_graph_classifier(tiny.graph)
    ids = torch.full((1, 64), 5)
    unfused = sdpa_kernel(SDPBackend.MATH)  # the counter does not support the fused CPU kernel
    with unfused, torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network.states(ids, torch.ones_like(ids), torch.zeros_like(ids))
    assert counter.get_total_flops() == gpu.count_operations(shape, 64)


class Fixed:
    """A runtime with constant logits."""

    def __init__(self, logits: list[float]) -> None:
        self.logits = logits

    def run(self, batch: Batch) -> NDArray[np.float32]:
        return np.tile(np.asarray(self.logits, np.float32), (len(batch.ids), 1)) * batch.token_types[:, :1]


def test_labels_are_compared_text_by_text(tiny: Bundle) -> None:
    texts = gpu.random_texts(gpu.Bench("cpu", gpu.SIZES["cpu"], tiny, 1), [8, 8, 8, 8])
    texts[0].token_types[:] = 1  # the other texts have equal logits and agree
    assert gpu.label_agreement(Fixed([1, 0, 0]), Fixed([0, 0, 1]), texts, 1) == 0.75
    assert gpu.label_agreement(Fixed([1, 0, 0]), Fixed([2, 0, 1]), texts, 1) == 1
