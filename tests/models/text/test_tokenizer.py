from __future__ import annotations

from pathlib import Path

import pytest

from models.text.encoding import collate
from models.text.language import detect_language
from models.text.tokenizer import EmptyTextError, Tokenizer, adapt_tokenizer
from tests.support.tiny_bundle import PIECES, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(path)
    return Tokenizer(path, max_tokens=32)


def token_strings(tokenizer: Tokenizer, text: str, entity: str | None = None) -> tuple[list[str], list[str]]:
    """Return all tokens, and those marked as the entity."""
    tokens = tokenizer.encode(text, entity)
    pieces = [PIECES[token_id] for token_id in tokens.ids]
    return pieces, [piece for piece, kind in zip(pieces, tokens.token_types, strict=True) if kind]


def test_a_text_stands_between_special_tokens(tokenizer: Tokenizer) -> None:
    assert token_strings(tokenizer, "ab") == (["<s>", "▁", "a", "b", "</s>"], [])


def test_the_entity_follows_the_text_and_is_marked_in_both(tokenizer: Tokenizer) -> None:
    pieces, marked = token_strings(tokenizer, "x B y", "b")
    assert pieces == ["<s>", *"▁x▁B▁y", "</s>", "</s>", *"▁b", "</s>"]
    assert marked == ["B", *"▁b"]


def test_an_entity_is_marked_only_as_a_whole_word(tokenizer: Tokenizer) -> None:
    assert token_strings(tokenizer, "Acme", "A")[1] == [*"▁A"]


def test_a_chinese_entity_is_marked_inside_running_text(tokenizer: Tokenizer) -> None:
    assert token_strings(tokenizer, "股平安银行涨", "平安")[1] == [*"平安", *"▁平安"]


def test_an_entity_with_pattern_characters_is_matched_literally(tokenizer: Tokenizer) -> None:
    assert token_strings(tokenizer, "a (b", "(b")[1][:2] == [*"(b"]


def test_a_text_over_the_limit_keeps_its_beginning_and_is_marked_truncated(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("abc" * 40)
    assert (tokens.length, tokens.truncated) == (32, True)
    assert [PIECES[token_id] for token_id in tokens.ids[:4]] == ["<s>", "▁", "a", "b"]


def test_a_text_that_just_fits_is_not_truncated(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("a" * 29)
    assert (tokens.length, tokens.truncated) == (32, False)


def test_a_text_over_the_limit_keeps_the_part_that_names_the_entity(tokenizer: Tokenizer) -> None:
    pieces, marked = token_strings(tokenizer, "a" * 60 + " Z " + "b" * 60, "Z")
    assert "Z" in marked[:-1]
    assert len(pieces) == 32


@pytest.mark.slow
@pytest.mark.parametrize("length", [1_000, 1_000_000])
@pytest.mark.parametrize("unit", ["a", "e\u0301", " a  b", "👩‍👩‍👧", "涨", "\ufdfa"])
def test_a_text_of_any_length_is_encoded(tokenizer: Tokenizer, unit: str, length: int) -> None:
    tokens = tokenizer.encode(unit * (length // len(unit)))
    assert tokens.length <= 32
    assert tokens.truncated or unit == "👩‍👩‍👧" or tokens.length < 32


def test_a_word_after_much_white_space_is_encoded(tokenizer: Tokenizer) -> None:
    assert token_strings(tokenizer, " " * 100_000 + "a")[0][-2] == "a"


@pytest.mark.parametrize("text", ["", " \t\n", "\u200b\u200d", "\0", "\u3000"])
def test_a_text_without_visible_characters_is_refused(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(EmptyTextError):
        tokenizer.encode(text)
    with pytest.raises(EmptyTextError):
        tokenizer.encode("a", text)


def test_the_language_is_that_of_the_dominant_script() -> None:
    assert detect_language("Shares of Acme plunge") == "en"
    assert detect_language("平安银行股价上涨") == "zh"
    assert detect_language("AAPL 大涨 10%") == "zh"
    assert detect_language("Alibaba (阿里) beats every estimate in a strong quarter") == "en"


def test_a_batch_is_padded_to_its_longest_text(tokenizer: Tokenizer) -> None:
    batch = collate([tokenizer.encode("a"), tokenizer.encode("abc", "b")], tokenizer.pad_id)
    assert batch.ids.shape == batch.mask.shape == batch.token_types.shape == (2, 10)
    assert batch.mask.sum(axis=1).tolist() == [4, 10]
    assert set(batch.ids[0, 4:].tolist()) == {tokenizer.pad_id}


def test_an_adapted_tokenizer_encodes_every_link_as_the_same_word(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "base.json")
    adapt_tokenizer(tmp_path / "base.json", tmp_path / "tokenizer.json")
    adapted = Tokenizer(tmp_path / "tokenizer.json", 32)
    assert token_strings(adapted, "a https://t.co/Xy?z=1 b") == token_strings(adapted, "a http b")
    adapt_tokenizer(tmp_path / "tokenizer.json", tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
