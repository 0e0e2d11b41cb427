"""The documents and the code say the same, and the documents are short and plain."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from statistics import median

import pytest
import yaml  # type: ignore[import-untyped]
from typer.testing import CliRunner

from service import errors, settings
from service.cli.main import app
from service.settings import Settings
from tests.docs import commands, settings_page
from tests.docs.__main__ import PAGES as GENERATED
from tests.docs.commands import ANSWER, MORE
from tests.docs.markdown import ROOT, Document, Fence, count_words, documents, split_sentences

pytestmark = pytest.mark.slow

README = Document(ROOT / "README.md")
ERRORS = Document(ROOT / "docs" / "errors.md")
PAGES = documents("README.md", "docs/**/*.md")
PROSE = [page for page in PAGES if not page.name.startswith("docs/results/")]
DOCUMENTS = documents("*.md", "docs/**/*.md")

MAX_README_BYTES = 8_192
MAX_SENTENCE_WORDS = 30
MAX_MEDIAN_WORDS = 16

# Variables that are not fields of Settings.
OTHER_VARIABLES = {"HEED_HAPROXY_BINARY"}
MAKEFILES = [ROOT / "Makefile", *ROOT.glob("requirements/*.mk"), *ROOT.glob("tests/bench/*.mk")]
TARGETS = [
    target
    for path in MAKEFILES
    for target in re.findall(r"^([a-z][a-z-]*):.*## ", path.read_text(encoding="utf-8"), re.MULTILINE)
]


def subclasses(kind: type[errors.Problem]) -> list[type[errors.Problem]]:
    return [problem for child in kind.__subclasses__() for problem in (child, *subclasses(child))]


def problems() -> dict[str, int]:
    """Statuses by code."""
    kinds: list[type[errors.Problem]] = [errors.Problem, *subclasses(errors.Problem)]
    return {kind.code: kind.status for kind in kinds}


def test_the_readme_is_short() -> None:
    assert len(README.path.read_bytes()) <= MAX_README_BYTES


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.name)
def test_generated_pages_are_what_make_docs_writes(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == GENERATED[path](), "run `make docs`"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented(name: str) -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for variable in settings_page.variables_of(name):
        assert f"`{variable}`" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_variable_that_a_page_names_is_read(page: Document) -> None:
    known = {variable for name in Settings.model_fields for variable in settings_page.variables_of(name)}
    if not page.name.startswith("docs/results/"):
        assert set(re.findall(r"\bHEED_[A-Z_]+[A-Z]\b", page.text)) <= known | OTHER_VARIABLES


@pytest.mark.parametrize(("code", "status"), problems().items())
def test_every_problem_is_documented_with_its_status(code: str, status: int) -> None:
    assert re.search(rf"^\|[^|]*`{code}`[^|]*\| {status} \|", ERRORS.text, re.MULTILINE)
    assert code in ERRORS.anchors


def test_every_documented_problem_exists() -> None:
    assert set(re.findall(r"^\|[^|`]*`(\w+)`[^|]*\| \d{3} \|", ERRORS.text, re.MULTILINE)) == problems().keys()


@pytest.mark.parametrize("target", TARGETS)
def test_every_make_target_is_documented(target: str) -> None:
    assert any(re.search(rf"\bmake {target}(?![\w-])", page.text) for page in DOCUMENTS)


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_every_make_target_that_a_page_names_exists(page: Document) -> None:
    named = re.findall(r"(?:`|^)(?:[A-Z_]+=\S+ )*make ([a-z][a-z-]*)", page.text, re.MULTILINE)
    assert set(named) <= set(TARGETS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_relative_link_resolves(document: Document) -> None:
    wrong = []
    for link in document.links:
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (document.path.parent / file).resolve() if file else document.path
        is_there = target.exists() and target.is_relative_to(ROOT)
        if not is_there or (anchor and anchor not in Document(target).anchors):
            wrong.append(link)
    assert not wrong


def test_every_page_is_in_the_index() -> None:
    index = Document(ROOT / "docs" / "index.md")
    linked = {(index.path.parent / link.partition("#")[0]).resolve() for link in index.links if ":" not in link}
    missing = {page.path for page in documents("docs/**/*.md")} - linked - {index.path}
    assert not missing


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_sentences_are_short(page: Document) -> None:
    too_long = [sentence for sentence in page.sentences if count_words(sentence) > MAX_SENTENCE_WORDS]
    assert not too_long
    assert median([count_words(sentence) for sentence in page.sentences] or [0]) <= MAX_MEDIAN_WORDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fence_says_its_language_and_json_is_json(page: Document) -> None:
    for fence in page.fences:
        assert fence.language, f"{page.name}, line {fence.line}"
        if fence.language == ANSWER:
            json.loads(fence.text)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(arguments, id=f"{document.name}: heed {' '.join(arguments)}")
        for document in PAGES
        for arguments in commands.heed_commands(document)
    ],
)
def test_every_heed_command_has_the_options_that_are_shown(arguments: list[str]) -> None:
    # Options are recognised before --help is answered, and nothing else happens.
    done = CliRunner().invoke(app, [*arguments, "--help"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("path", sorted((ROOT / "deploy").glob("serve*.yaml")), ids=lambda path: path.name)
def test_every_serve_config_sets_what_can_be_set(path: Path) -> None:
    (application,) = yaml.safe_load(path.read_text(encoding="utf-8"))["applications"]
    settings.load_settings(**application["args"])


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One idea. Another one.", ["One idea.", "Another one."]),
        ("Version 2.0.0 has 0.5 of it, e.g. Half.", ["Version 2.0.0 has 0.5 of it, e.g. Half."]),
        ('He said "no." Code is one word.', ['He said "no."', "Code is one word."]),
        ("第一句。第二句！", ["第一句。", "第二句！"]),
        ("A list; of: parts", ["A list; of: parts"]),
    ],
)
def test_sentences_are_split_at_their_ends(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@pytest.mark.parametrize(
    ("sentence", "words"), [("Three short words.", 3), ("模型很小", 2), ("用 Code 启动", 3), ("a – b", 2), (MORE, 0)]
)
def test_words_are_counted(sentence: str, words: int) -> None:
    assert count_words(sentence) == words


def test_a_document_is_read_as_github_shows_it(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(
        "# One `code` title!\n\nA [link](a.md#b) and `some code, which is one. Word`. Two.\n\n"
        "| a table. | no prose. |\n|---|---|\n| x. | ![y](z.png) |\n\n- an item\n\n"
        "```sh\ncurl x\n```\n\n## Same\n\n## Same\n",
        encoding="utf-8",
    )
    page = Document(path)
    assert page.sentences == ["A link and Code.", "Two.", "an item"]
    assert page.links == ["a.md#b", "z.png"]
    assert page.anchors == {"one-code-title", "same", "same-1"}
    assert page.fences == [Fence(language="sh", text="curl x\n", line=11, end=14)]


@pytest.mark.parametrize(
    ("printed", "real", "is_kept"),
    [
        ('{"score": 0.97}', {"score": 0.9722}, True),
        ('{"score": 0.97}', {"score": 0.9661}, True),
        ('{"score": 0.97}', {"score": 0.9822}, False),
        ('{"score": 1}', {"score": True}, False),
        ('{"count": 3}', {"count": 4}, False),
        ('{"label": "negative"}', {"label": "positive"}, False),
        ('{"label": "negative"}', {"label": "negative", "id": None}, False),
        ('{"label": "negative", "id": null}', {"label": "negative"}, False),
        ('{"label": "negative", "...": "..."}', {"label": "negative", "id": None}, True),
        ('{"digest": "3f2a..."}', {"digest": "3f2a77"}, True),
        ('{"words": [1, 2]}', {"words": [1, 2, 3]}, False),
        ('{"words": [1, 2, "..."]}', {"words": [1, 2, 3]}, True),
        ('{"words": [1, 2, "..."]}', {"words": [1, 2]}, False),
        ('{"timings_ms": {"queue": 0.1}}', {"timings_ms": {"queue": 7.5}}, True),
        ('{"timings_ms": {"queue": 0.1}}', {"timings_ms": {"infer": 0.1}}, False),
    ],
)
def test_an_answer_is_kept_when_its_keys_are_there_and_its_numbers_agree(
    printed: str, real: object, is_kept: bool
) -> None:
    assert (not list(commands.differences(json.loads(printed, parse_float=Decimal), real))) == is_kept


# Files that CONTRIBUTING describes for work to come, and files of a user's own folder.
NOT_IN_THE_REPOSITORY = re.compile(r"toxicity|dialects/|cli/stream\.py|^notes\.md$|^CARD\.md$")


@pytest.mark.parametrize(
    "page", [page for page in DOCUMENTS if "results/" not in page.name], ids=lambda page: page.name
)
def test_every_file_that_a_page_names_exists(page: Document) -> None:
    roots = [ROOT / name for name in ("", "models", "service", "docs", "tests", "models/configs")]
    for name in re.findall(r"`([\w./-]+\.(?:py|toml|yaml|mk|md))`", page.path.read_text(encoding="utf-8")):
        if NOT_IN_THE_REPOSITORY.search(name) or page.name == "CHANGELOG.md":
            continue
        alone = "/" not in name and any(ROOT.glob(f"*/**/{name}"))
        assert alone or any((root / name).exists() for root in roots), f"{page.name} names {name}"
