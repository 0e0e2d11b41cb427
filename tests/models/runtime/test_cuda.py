"""The runtime for GPUs, run on the CPU: its graph and its shapes. Nothing is captured there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from models.bundle import GRAPH, Bundle, load_bundle
from models.graph.builder import build_graph, save_graph
from models.graph.convert import convert_graph
from models.graph.names import LOG_STEP
from models.graph.writer import Precision
from models.runtime.cuda import (
    LENGTHS,
    MAX_CAPTURED_TOKENS,
    ROWS,
    CudaRuntime,
    batch_shapes,
    pad_to_shape,
    padded_shape,
    to_fp16,
)
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import Batch, Encoding, collate
from tests.support.older_graph import older_graph
from tests.support.tiny_bundle import HEADS, PIECES, WIDTH, tiny_bundle, weights

PAD_ID = 1


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_bundle(tmp_path_factory.mktemp("bundle")))


def random_batch(lengths: list[int]) -> Batch:
    """Return texts of these lengths; every second text names an entity."""
    rng = np.random.default_rng(6)
    texts = []
    for index, length in enumerate(lengths):
        types = np.zeros(length, np.int64)
        types[1 : 1 + index % 2] = 1
        texts.append(Encoding(rng.integers(5, len(PIECES), length), types, False, "en"))
    return collate(texts, PAD_ID)


@pytest.mark.parametrize("lengths", [[1], [15], [16], [17], [3, 40, 7, 33], [512, 2], [512] * 9], ids=str)
def test_runs_with_bound_arrays_equal_plain_runs(bundle: Bundle, lengths: list[int]) -> None:
    batch = random_batch(lengths)
    plain, bound = OnnxRuntime(to_fp16(bundle.graph)).run(batch), CudaRuntime(bundle.graph, device="cpu").run(batch)
    assert bound.shape == (len(lengths), 3)
    assert bound.dtype == np.float32
    np.testing.assert_allclose(bound, plain, atol=5e-3)


@pytest.mark.parametrize("lengths", [[1], [3, 40, 7], [512] * 9], ids=str)
def test_vectors_of_bound_arrays_equal_those_of_plain_runs(bundle: Bundle, lengths: list[int]) -> None:
    batch, runtime = random_batch(lengths), CudaRuntime(bundle.graph, device="cpu")
    logits, vectors = runtime.run_with_vectors(batch)
    expected = OnnxRuntime(to_fp16(bundle.graph)).run_with_vectors(batch)[1]
    assert vectors.shape == (len(lengths), WIDTH)
    np.testing.assert_allclose(vectors, expected, atol=5e-3)
    np.testing.assert_array_equal(logits, runtime.run(batch))


def test_vectors_outlive_the_next_run(bundle: Bundle) -> None:
    runtime = CudaRuntime(bundle.graph, device="cpu")
    _, vectors = runtime.run_with_vectors(random_batch([9, 9]))
    expected = vectors.copy()
    runtime.run_with_vectors(random_batch([16, 12]))
    np.testing.assert_array_equal(vectors, expected)


def test_the_graph_for_gpus_has_vectors_even_from_an_older_export(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / GRAPH).write_bytes(older_graph(onnx.load(str(bundle.graph))).SerializeToString())
    batch = random_batch([3, 40])
    newer, older = (
        CudaRuntime(graph, device="cpu").run_with_vectors(batch) for graph in (bundle.graph, tmp_path / GRAPH)
    )
    for old_rows, new_rows in zip(older, newer, strict=True):
        np.testing.assert_array_equal(old_rows, new_rows)


@pytest.mark.parametrize("precision", ["fp32", "mixed", "int8"])
@pytest.mark.parametrize("learned", [False, True], ids=["plain", "steps"])
def test_fp16_logits_equal_those_of_the_stored_weights_in_fp32(
    tmp_path: Path, precision: Precision, learned: bool
) -> None:
    tensors = weights()
    if learned:  # steps so small that inputs are clipped
        rounded = [name for name in tensors if name.endswith(("query.weight", "dense.weight"))]
        tensors |= {name.replace(".weight", f".{LOG_STEP}"): np.asarray(np.log(0.004), np.float32) for name in rounded}
    save_graph(build_graph(tensors, HEADS, 1e-12, precision), tmp_path / "model.onnx")
    texts = random_batch([3, 40, 7, 33])
    exact = OnnxRuntime(convert_graph(tmp_path / "model.onnx", "fp32").SerializeToString()).run(texts)
    np.testing.assert_allclose(CudaRuntime(tmp_path / "model.onnx", device="cpu").run(texts), exact, atol=0.02)


def test_the_rows_of_a_run_outlive_the_next_run(bundle: Bundle) -> None:
    runtime = CudaRuntime(bundle.graph, device="cpu")
    first = runtime.run(random_batch([9, 9]))
    expected = first.copy()
    runtime.run(random_batch([20, 20]))
    np.testing.assert_array_equal(first, expected)


def test_a_repeated_shape_gets_the_rows_of_the_new_batch(bundle: Bundle) -> None:
    runtime, plain = CudaRuntime(bundle.graph, device="cpu"), OnnxRuntime(to_fp16(bundle.graph))
    for lengths in ([9, 16, 4], [16] * 4, [2], [13, 3, 8]):
        batch = random_batch(lengths)
        np.testing.assert_allclose(runtime.run(batch), plain.run(batch), atol=5e-3)


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
def test_batches_are_padded_to_few_shapes(rows: int, length: int, expected: tuple[int, int]) -> None:
    assert padded_shape(rows, length) == expected
    feeds = pad_to_shape(random_batch([length] * rows), expected)
    assert {array.shape for array in feeds.values()} == {expected}
    assert feeds["mask"].sum(axis=1).tolist() == [length] * rows + [1] * (expected[0] - rows)


def test_batch_shapes_are_all_shapes_of_batches_within_the_limits() -> None:
    shapes = list(batch_shapes(500, 2048, 16))
    assert shapes[0] == max(shapes, key=lambda shape: shape[0] * shape[1])
    assert set(shapes) == {
        padded_shape(rows, length)
        for length in range(1, 501)
        for rows in range(1, 17)
        if rows == 1 or rows * length <= 2048
    }
    assert {rows for rows, _ in shapes} <= set(ROWS)
    assert {length for _, length in shapes} == set(LENGTHS)
    assert any(rows * length > MAX_CAPTURED_TOKENS for rows, length in batch_shapes(500, 8192, 64))
