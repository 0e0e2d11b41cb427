"""The runtime of GPUs on the CPU: its graph, its shapes and what it keeps for each; nothing is captured there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.bundle import Bundle, load_bundle
from models.graph.builder import build_graph, save_graph
from models.graph.convert import convert_graph
from models.graph.names import LOG_STEP
from models.graph.writer import Precision
from models.runtime.cuda import (
    CAPTURED_TOKENS,
    LENGTHS,
    ROWS,
    CudaRuntime,
    batch_shapes,
    pad_to_shape,
    padded_shape,
    to_fp16,
)
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import Batch, Encoding, collate
from tests.support.tiny_bundle import HEADS, PIECES, tiny_bundle, weights

PAD = 1


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_bundle(tmp_path_factory.mktemp("bundle")))


def batch(lengths: list[int]) -> Batch:
    """Every other text names a target."""
    rng = np.random.default_rng(6)
    texts = []
    for number, length in enumerate(lengths):
        types = np.zeros(length, np.int64)
        types[1 : 1 + number % 2] = 1
        texts.append(Encoding(rng.integers(5, len(PIECES), length), types, False, "en"))
    return collate(texts, PAD)


@pytest.mark.parametrize("lengths", [[1], [15], [16], [17], [3, 40, 7, 33], [512, 2], [512] * 9], ids=str)
def test_bound_answers_are_those_of_a_plain_run(bundle: Bundle, lengths: list[int]) -> None:
    given = batch(lengths)
    plain, bound = OnnxRuntime(to_fp16(bundle.graph)).run(given), CudaRuntime(bundle.graph, device="cpu").run(given)
    assert bound.shape == (len(lengths), 3)
    assert bound.dtype == np.float32
    np.testing.assert_allclose(bound, plain, atol=5e-3)


@pytest.mark.parametrize("storage", ["fp32", "mixed", "int8"])
@pytest.mark.parametrize("learned", [False, True], ids=["plain", "steps"])
def test_a_gpu_s_answers_are_those_of_the_weights_that_the_bundle_stores(
    tmp_path: Path, storage: Precision, learned: bool
) -> None:
    given = weights()
    if learned:  # so small that inputs are cut
        rounded = [name for name in given if name.endswith(("query.weight", "dense.weight"))]
        given |= {name.replace(".weight", f".{LOG_STEP}"): np.asarray(np.log(0.004), np.float32) for name in rounded}
    save_graph(build_graph(given, HEADS, 1e-12, storage), tmp_path / "model.onnx")
    texts = batch([3, 40, 7, 33])
    exact = OnnxRuntime(convert_graph(tmp_path / "model.onnx", "fp32").SerializeToString()).run(texts)
    np.testing.assert_allclose(CudaRuntime(tmp_path / "model.onnx", device="cpu").run(texts), exact, atol=0.02)


def test_answers_of_one_run_outlive_the_next(bundle: Bundle) -> None:
    runtime = CudaRuntime(bundle.graph, device="cpu")
    first = runtime.run(batch([9, 9]))
    kept = first.copy()
    runtime.run(batch([20, 20]))
    np.testing.assert_array_equal(first, kept)


def test_a_shape_that_was_seen_answers_what_is_asked_now(bundle: Bundle) -> None:
    runtime, plain = CudaRuntime(bundle.graph, device="cpu"), OnnxRuntime(to_fp16(bundle.graph))
    for lengths in ([9, 16, 4], [16] * 4, [2], [13, 3, 8]):
        given = batch(lengths)
        np.testing.assert_allclose(runtime.run(given), plain.run(given), atol=5e-3)


@pytest.mark.parametrize(
    ("rows", "length", "expected"),
    [
        (1, 1, (1, 16)),
        (3, 16, (4, 16)),
        (4, 17, (4, 32)),
        (65, 129, (96, 160)),
        (1, 512, (1, 512)),
        (1100, 600, (1100, 600)),
    ],
)
def test_shapes_repeat(rows: int, length: int, expected: tuple[int, int]) -> None:
    assert padded_shape(rows, length) == expected
    feeds = pad_to_shape(batch([length] * rows), expected)
    assert {array.shape for array in feeds.values()} == {expected}
    assert feeds["mask"].sum(axis=1).tolist() == [length] * rows + [1] * (expected[0] - rows)


def test_every_shape_of_the_batches_that_may_come_is_known_before() -> None:
    known = list(batch_shapes(500, 2048, 16))
    assert known[0] == max(known, key=lambda shape: shape[0] * shape[1])
    assert set(known) == {
        padded_shape(rows, length)
        for length in range(1, 501)
        for rows in range(1, 17)
        if rows == 1 or rows * length <= 2048
    }
    assert {rows for rows, _ in known} <= set(ROWS)
    assert {length for _, length in known} == set(LENGTHS)
    assert any(rows * length > CAPTURED_TOKENS for rows, length in batch_shapes(500, 8192, 64))
