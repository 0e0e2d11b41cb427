"""The answers of teachers, computed once and kept in files that a distillation reads.

A student then needs no teacher at each step. So teachers may be heavy, several, and have tokenizers of their own. A
file holds the logits of a run by the digest of a row, which is its text with its entity.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from math import ceil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.special import softmax

from models.augmentation.epochs import make_epoch
from models.bundle import TOKENIZER, file_digest
from models.data.classification import Dataset, read_texts
from models.data.leaks import remove_leaks
from models.files import replace_atomically
from models.networks.encoder import Classifier
from models.networks.torch_runtime import TorchRuntime
from models.runtime.offline import infer_all
from models.tasks import TASKS
from models.text.tokenizer import Tokenizer
from models.training.classification import load_run, load_weights, read_rows
from models.training.classification_batches import ClassificationConfig
from models.training.trainer import WEIGHTS, ConfigError, choose_device, supports_bfloat16

DIGESTS, LOGITS = "digests", "logits"
"""The tensors of a file: digests (rows,), sorted, and logits (rows, labels)."""

TEACHER, LABELS = "teacher", "labels"
"""The metadata of a file: the digest of the teacher's weights, and its labels."""

CHUNK_ROWS = 4096
"""Rows after which the file is written. A killed computation loses no more than these."""

Row = tuple[str, str | None]
"""A text and the entity that it is read for, if any."""


def row_digest(text: str, entity: str | None) -> int:
    """Return 64 bits that name a row. White space around the text does not count, as for the tokenizer."""
    content = text.strip() if entity is None else f"{text.strip()}\0{entity.strip()}"
    return int.from_bytes(blake2b(content.encode(), digest_size=8).digest(), "little")


class TeacherAnswers:
    """The answers of several teachers, averaged.

    `labels` are those that the answers are over, and `len` is the number of rows with an answer.
    """

    def __init__(self, labels: Sequence[str], digests: NDArray[np.uint64], probabilities: NDArray[np.float32]) -> None:
        """`digests` (n,) may name a row several times. `probabilities` are (n, labels)."""
        self.labels = tuple(labels)
        self._digests, rows = np.unique(digests, return_inverse=True)
        totals = np.zeros((len(self._digests), len(self.labels)))
        np.add.at(totals, rows, probabilities)
        counts = np.bincount(rows, minlength=len(self._digests))
        self._answers = np.log(np.maximum(totals / counts[:, None], 1e-12)).astype(np.float32)

    def __len__(self) -> int:
        return len(self._digests)

    def lookup(self, text: str, entity: str | None) -> NDArray[np.float32] | None:
        """Return the logarithm of the mean probabilities (labels,) over the teachers that know a row, None if none."""
        digest = np.uint64(row_digest(text, entity))
        index = int(np.searchsorted(self._digests, digest))
        known = index < len(self._digests) and self._digests[index] == digest
        return self._answers[index] if known else None


def load_answers(files: Iterable[Path]) -> TeacherAnswers:
    """Load the answers of one teacher or more.

    Raises:
        ConfigError: A file cannot be read, or the teachers have different labels.
    """
    loaded = [(file, *_read(file)) for file in files]
    labels = [metadata[LABELS] for _, metadata, _, _ in loaded]
    for file, metadata, _, _ in loaded:
        if metadata[LABELS] != labels[0]:
            raise ConfigError(f"{file} has answers over other labels than {loaded[0][0]}")
    if not loaded:
        raise ConfigError("there are no files of answers")
    digests = np.concatenate([digests for _, _, digests, _ in loaded])
    probabilities = np.concatenate([softmax(logits, axis=1) for _, _, _, logits in loaded])
    return TeacherAnswers(json.loads(labels[0]), digests, probabilities)


def answer_rows(
    run: Path,
    config: ClassificationConfig,
    unlabelled: Sequence[Dataset],
    data: Path,
    texts: Path,
    out: Path,
    log: Callable[[str], None],
) -> int:
    """Write the answers of the training folder `run` to `out`, and return the number of rows there.

    The rows are those of a student's configuration: its data sets in `data`, and `unlabelled` files in `texts`.
    Raises ConfigError if the run is for another task, or `out` belongs to another run.
    """
    trained = load_run(run)
    if trained.config.task != config.task:
        raise ConfigError(f"{run} was trained for {trained.config.task}, and the configuration is for {config.task}")
    task = TASKS[config.task]
    network = load_weights(run, trained, task)
    tokenizer = Tokenizer(run / TOKENIZER, task.max_tokens, trained.config.reading)
    metadata = {TEACHER: file_digest(run / WEIGHTS), LABELS: json.dumps(task.labels)}
    return compute_answers(network, tokenizer, student_rows(config, unlabelled, data, texts), out, metadata, log)


def student_rows(config: ClassificationConfig, unlabelled: Sequence[Dataset], data: Path, texts: Path) -> Iterator[Row]:
    """Yield the rows that a student reads in all its epochs, without noise and with repeats."""
    rows, validation = read_rows(data, config)
    rows += remove_leaks([row for source in unlabelled for row in read_texts(texts, source)], validation)
    for epoch in range(ceil(config.epochs)):
        sources = (*config.datasets, *unlabelled)
        for row in make_epoch(rows, sources, config.seed, epoch, config.augment, config.hidden):
            yield row.text, row.entity


def compute_answers(
    network: Classifier,
    tokenizer: Tokenizer,
    rows: Iterable[Row],
    out: Path,
    metadata: Mapping[str, str],
    log: Callable[[str], None],
) -> int:
    """Add the network's logits for the rows that `out` lacks, in chunks, and return the number of rows there.

    Raises ConfigError if the file there has other `metadata`.
    """
    digests, logits = _resume(out, metadata)
    known = set(digests.tolist())
    missing = {digest: row for row in rows if (digest := row_digest(*row)) not in known}
    # Chunks of similar lengths have little padding.
    ordered = sorted(missing.items(), key=lambda item: len(item[1][0]))
    device = choose_device()
    runtime = TorchRuntime(network, str(device), torch.bfloat16 if supports_bfloat16(device) else torch.float32)
    out.parent.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(ordered), CHUNK_ROWS):
        chunk = ordered[start : start + CHUNK_ROWS]
        answers = infer_all(runtime, [tokenizer.encode(*row) for _, row in chunk], tokenizer.pad_id)
        digests = np.append(digests, np.array([digest for digest, _ in chunk], np.uint64))
        logits = answers if not len(logits) else np.concatenate([logits, answers])
        order = np.argsort(digests)
        digests, logits = digests[order], np.ascontiguousarray(logits[order])
        with replace_atomically(out) as temporary:
            save_file({DIGESTS: digests, LOGITS: logits}, temporary, dict(metadata))
        log(f"{len(digests)} of {len(known) + len(missing)} rows")
    return len(digests)


def _resume(out: Path, metadata: Mapping[str, str]) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """Return the digests and logits of a file that was begun, or none."""
    if not out.exists():
        return np.empty(0, np.uint64), np.empty((0, 0), np.float32)
    present, digests, logits = _read(out)
    if present != dict(metadata):
        raise ConfigError(f"{out} holds the answers of another run; name a new file with --out")
    return digests, logits


def _read(file: Path) -> tuple[dict[str, str], NDArray[np.uint64], NDArray[np.float32]]:
    try:
        with safe_open(file, framework="numpy") as tensors:
            return tensors.metadata(), tensors.get_tensor(DIGESTS), tensors.get_tensor(LOGITS)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file} is no file of answers: {error}") from error
