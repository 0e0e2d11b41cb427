"""The answers of teachers: computed once, kept, completed and averaged."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_torch
from typer.testing import CliRunner

from models.augmentation.epochs import make_epoch
from models.bundle import TOKENIZER
from models.data.classification import Dataset
from models.runtime.offline import infer_all
from models.tasks import TASKS
from models.text.encoding import Encoding
from models.text.tokenizer import Tokenizer
from models.training import teacher_answers
from models.training.classification import load_run, load_weights, read_rows
from models.training.teacher_answers import (
    DIGESTS,
    LABELS,
    LOGITS,
    TEACHER,
    Row,
    answer_rows,
    load_answers,
    row_digest,
    student_rows,
)
from models.training.trainer import WEIGHTS, ConfigError
from service.cli.main import app
from tests.models.conftest import CONFIG, WORDS

pytestmark = pytest.mark.slow

TEXTS = Dataset("headlines", "en", (), "MIT")
STUDENT = replace(CONFIG, epochs=2)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    with gzip.open(folder / "headlines.txt.gz", "wt", encoding="utf-8") as lines:
        lines.writelines(f"XY{number} {WORDS[label][0]}\n" for number in range(20) for label in WORDS)
    return folder


@pytest.fixture(scope="module")
def answers(run: Path, data: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("answers") / "first.safetensors"
    answer_rows(run, STUDENT, [TEXTS], data, texts, out, print)
    return out


def write_file(path: Path, rows: dict[Row, list[float]], labels: Sequence[str]) -> Path:
    digests = np.array([row_digest(*row) for row in rows], np.uint64)
    logits = np.log(np.array(list(rows.values()), np.float32))
    save_file({DIGESTS: digests, LOGITS: logits}, path, {TEACHER: path.name, LABELS: json.dumps(labels)})
    return path


def test_every_row_of_every_epoch_has_the_answer_that_the_teacher_gives(
    run: Path, data: Path, texts: Path, answers: Path
) -> None:
    loaded = load_answers([answers])
    network = load_weights(run, load_run(run), TASKS["sentiment"])
    tokenizer = Tokenizer(run / TOKENIZER, 512)
    rows = set(student_rows(STUDENT, [TEXTS], data, texts))
    labelled, _ = read_rows(data, STUDENT)
    epochs = [make_epoch(labelled, STUDENT.datasets, STUDENT.seed, epoch, STUDENT.augment) for epoch in (0, 1)]
    assert rows >= {(row.text, row.entity) for epoch in epochs for row in epoch} | {("XY3 gains", None)}
    assert len(loaded) == len(rows)
    for text, entity in sorted(rows, key=str)[::10]:
        tokens = tokenizer.encode(text, entity)
        inputs = (torch.from_numpy(array)[None] for array in (tokens.ids, np.ones_like(tokens.ids), tokens.token_types))
        with torch.inference_mode():
            expected = network(*inputs)[0].log_softmax(dim=-1).numpy()
        answer = loaded.lookup(text, entity)
        assert answer is not None
        np.testing.assert_allclose(answer, expected, atol=1e-4)


def test_a_row_is_its_text_with_its_entity_whatever_the_space_around() -> None:
    rows: list[Row] = [("a b", None), ("a b", "a"), ("a b", "b"), ("a", None), ("a b", "")]
    assert len({row_digest(*row) for row in rows}) == len(rows)
    assert row_digest(" a b\n", "a ") == row_digest("a b", "a")


def test_the_probabilities_of_the_teachers_that_know_a_row_are_averaged(tmp_path: Path) -> None:
    labels = ["down", "up"]
    first = write_file(tmp_path / "first", {("a", None): [0.2, 0.8], ("b", None): [0.5, 0.5]}, labels)
    second = write_file(tmp_path / "second", {("a", None): [0.6, 0.4], ("c", "X"): [0.1, 0.9]}, labels)
    loaded = load_answers([first, second])
    assert (loaded.labels, len(loaded)) == (("down", "up"), 3)
    expected = {("a", None): [0.4, 0.6], ("b", None): [0.5, 0.5], ("c", "X"): [0.1, 0.9]}
    for row, probabilities in expected.items():
        answer = loaded.lookup(*row)
        assert answer is not None
        np.testing.assert_allclose(np.exp(answer), probabilities, atol=1e-6)
    assert loaded.lookup("c", None) is None
    assert loaded.lookup("d", None) is None


def test_a_killed_computation_is_completed_without_computing_a_row_twice(
    run: Path, data: Path, texts: Path, answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, computed = tmp_path / "new" / "answers.safetensors", list[int]()

    def counted(runtime: Any, encodings: Sequence[Encoding], pad_id: int) -> Any:
        computed.append(len(encodings))
        if len(computed) == 3:
            raise KeyboardInterrupt
        return infer_all(runtime, encodings, pad_id)

    monkeypatch.setattr(teacher_answers, "CHUNK_ROWS", 32)
    monkeypatch.setattr("models.training.teacher_answers.infer_all", counted)
    with pytest.raises(KeyboardInterrupt):
        answer_rows(run, STUDENT, [TEXTS], data, texts, out, print)
    assert len(load_answers([out])) == 64
    count = answer_rows(run, STUDENT, [TEXTS], data, texts, out, print)
    killed = computed.pop(2)
    assert killed == 32
    assert sum(computed) == count
    whole, completed = load_answers([answers]), load_answers([out])
    for row in set(student_rows(STUDENT, [TEXTS], data, texts)):
        one, other = completed.lookup(*row), whole.lookup(*row)
        assert one is not None
        assert other is not None
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_answers_of_another_run_task_or_labels_are_refused(
    run: Path, data: Path, texts: Path, answers: Path, tmp_path: Path
) -> None:
    other = copytree(run, tmp_path / "other")
    weights = load_file(other / WEIGHTS)
    save_torch({**weights, "head.bias": weights["head.bias"] + 1}, other / WEIGHTS)
    with pytest.raises(ConfigError, match="answers of another run"):
        answer_rows(other, STUDENT, [TEXTS], data, texts, answers, print)
    with pytest.raises(ConfigError, match="was trained for sentiment"):
        answer_rows(run, replace(STUDENT, task="toxicity"), [], data, texts, tmp_path / "out", print)
    strange = write_file(tmp_path / "strange", {("a", None): [0.5, 0.5]}, ["down", "up"])
    with pytest.raises(ConfigError, match="other labels"):
        load_answers([answers, strange])
    (tmp_path / "broken").write_bytes(b"no tensors")
    for file in ("broken", "none"):
        with pytest.raises(ConfigError, match=f"{file} is no file of answers"):
            load_answers([tmp_path / file])
    with pytest.raises(ConfigError, match="no files"):
        load_answers([])


def toml_lines(fields: dict[str, Any]) -> Iterator[str]:
    yield from (f"{name} = {json.dumps(value)}" for name, value in fields.items() if value not in (None, ()))


def test_the_command_writes_the_answers(run: Path, data: Path, texts: Path, tmp_path: Path) -> None:
    fields = asdict(STUDENT)
    del fields["datasets"]
    lines = list(toml_lines(fields))
    for source in STUDENT.datasets:
        lines += ["[[datasets]]", *toml_lines(asdict(source))]
    lines += ["[[texts]]", 'name = "headlines"', 'language = "en"', 'licence = "MIT"']
    lines += ["[distillation]", "layers = [0]", "temperature = 2.0", "labels_weight = 0.5", "states_weight = 1.0"]
    lines += ["corrupted = 0.0", "corrupted_tokens = 0.0", "compiled = false"]
    (tmp_path / "config.toml").write_text("\n".join(lines), encoding="utf-8")
    out = tmp_path / "answers.safetensors"
    command = ["answers", str(run), "--data", str(data), "--config", str(tmp_path / "config.toml"), "--out", str(out)]
    labelled = CliRunner().invoke(app, command)
    assert labelled.exit_code == 0, labelled.output
    count = len(load_answers([out]))
    assert f"the answers to {count} rows" in labelled.output
    assert load_answers([out]).lookup("XY3 gains", None) is None
    assert CliRunner().invoke(app, [*command, "--texts", str(texts)]).exit_code == 0
    assert load_answers([out]).lookup("XY3 gains", None) is not None
    assert len(load_answers([out])) == count + 60
