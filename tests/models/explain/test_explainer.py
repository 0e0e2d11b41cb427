from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import SHIPPED, load_bundle
from models.explain.attention_maps import AttentionMapRuntime
from models.explain.attribution import (
    attention_attribution,
    occlusion,
    pooling_weights,
    rollout,
    shapley,
    two_sided_occlusion,
    value_norm,
)
from models.explain.explainer import DEFAULT_METHOD, METHODS, Explainer, Explanation, MethodName, Result
from models.explain.gradients import Gradients
from models.explain.instance import features_of
from models.explain.methods import SUPPORTED_METHODS
from models.prediction.calibration import find_scaling, probabilities
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import Batch, Encoding, collate
from models.text.tokenizer import EmptyTextError, Tokenizer
from models.text.words import LINK_WORD, WordSpans

pytestmark = pytest.mark.slow

BUNDLE = load_bundle(SHIPPED)
TOKENIZER = Tokenizer.from_bundle(BUNDLE)
RUNTIME = OnnxRuntime(BUNDLE.graph)
EXPLAINER = Explainer(BUNDLE, TOKENIZER, RUNTIME)
NEWS = "Shares of Acme plunge after profit warning"

SCRAPS = [
    *("Acme", "profits", "don't", "U.S.", "3.5%", "$TSLA", "#stocks", "@who", "café", "cafe\u0301", "naïve", "ﬁne"),
    *("股价", "涨停板", "公司", "，", "。", "！", "平安银行", "５０％", "㍿", "漢", "\U00020bb7", "コスト", "한국"),
    *("👍", "👍🏽", "👨‍👩‍👧", "🇨🇳", "🇺🇸", "❤️", "1️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🙂"),
    *("مرحبا", "بِسْمِ", "שלום", "שָׁלוֹם", "नमस्ते", "ไทย", "ё", "И\u0306"),
    *("https://t.co/Xy?z=1", "http://例.cn/路", "!!!", "...", "—", "“quoted”", "a_b", "x-y", "½", "①", "\ufdfa"),
    *("\u200b", "\u200d", "\u00ad", "\x07", "<s>", "<mask>", "</s>", "▁"),
    *(" ", "  ", "\n", "\t", "\u3000", "\u00a0", "\u2009", "\r\n", ""),
]


def texts(count: int) -> list[str]:
    chance = random.Random(11)
    made = ["".join(chance.choices(SCRAPS, k=chance.randint(1, 24))) for _ in range(count * 2)]
    return [text for text in made if text.strip() and any(c.isalnum() for c in text)][:count]


def bare(text: str) -> str:
    """Letters and digits without marks, width or form."""
    return "".join(c for c in unicodedata.normalize("NFKD", text) if c.isalnum())


def explain(
    text: str, entity: str | None = None, method: MethodName = DEFAULT_METHOD, target: str | None = None
) -> Explanation:
    return EXPLAINER.explain(EXPLAINER.text_instance(text, entity, target), method)


def read(text: str, entity: str | None = None) -> tuple[Encoding, WordSpans]:
    reading = TOKENIZER.encode_with_words(text, entity)
    (words,) = reading.segments
    return reading.tokens, words


def words_of(text: str) -> list[str]:
    return [text[start:end] for start, end in read(text)[1].spans]


def test_words_are_where_they_say_in_two_thousand_mixed_texts() -> None:
    for text in texts(2000):
        tokens, words = read(text)
        before = 0
        for start, end in words.spans:
            assert before <= start < end <= len(text)
            assert not text[before:start] or all(
                c.isspace() or unicodedata.category(c) == "Cc" for c in text[before:start]
            )
            before = end
        assert all(c.isspace() or unicodedata.category(c) == "Cc" for c in text[before:])
        assert tokens.ids.tolist() == TOKENIZER.encode(text).ids.tolist()


def test_the_tokens_of_a_word_are_made_of_its_characters() -> None:
    """Were offsets to drift, a word behind an emoji, a mark or a link would be given another's tokens."""
    for text in texts(2000):
        tokens, words = read(text)
        for place in range(1, tokens.length - 1):
            own = [span for span, places in zip(words.spans, words.token_positions, strict=True) if place in places]
            said = "".join(text[start:end] for start, end in own)
            piece = TOKENIZER._tokenizer.id_to_token(int(tokens.ids[place])) or ""
            assert own or piece == "▁", (text, place)
            assert piece == "<unk>" or LINK_WORD.search(said) or bare(piece) in bare(said), (text, piece, said)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Acme don't rise 3.5%!!! ", ["Acme", "don't", "rise", "3.5", "%", "!!!"]),
        ("股价ABC大涨，2家", ["股", "价", "ABC", "大", "涨", "，", "2", "家"]),
        ("ok 👨‍👩‍👧👍🏽🇨🇳🇺🇸❤️1️⃣", ["ok", "👨‍👩‍👧", "👍🏽", "🇨🇳", "🇺🇸", "❤️", "1️⃣"]),
        ("cafe\u0301 naïve", ["cafe\u0301", "naïve"]),
        ("بِسْمِ שָׁלוֹם", ["بِسْمِ", "שָׁלוֹם"]),
        ("see，https://t.co/a?b=c now", ["see", "，", "https://t.co/a?b=c", "now"]),
        ("'quoted' x-y 1,000, a", ["'", "quoted", "'", "x", "-", "y", "1,000", ",", "a"]),
    ],
)
def test_words_are_those_that_a_reader_sees(text: str, expected: list[str]) -> None:
    assert words_of(text) == expected


def weights_of(explanation: Explanation) -> NDArray[np.float64]:
    return np.asarray([weight.weight for weight in explanation.segments[0].words])


def probability(tokens: Encoding, whole: Encoding, label: int) -> float:
    scaling = find_scaling(BUNDLE.calibration, whole.language, whole.has_entity)
    return float(probabilities(RUNTIME.run(collate([tokens], TOKENIZER.pad_id)), scaling)[0, label])


@pytest.mark.parametrize(
    ("text", "entity"),
    [(NEWS, None), ("  Stock A soars while B plunges", "B"), ("Profit of 1200 points 👍🏽 up", None)],
)
def test_occlusion_is_what_taking_each_word_away_by_hand_changes(text: str, entity: str | None) -> None:
    tokens, words = read(text, entity)
    found = explain(text, entity, "occlusion", "positive")
    for number, places in enumerate(words.token_positions):
        if found.segments[0].words[number].is_entity:
            assert found.segments[0].words[number].weight == 0
            continue
        left = [place for place in range(tokens.length) if place not in places]
        fewer = Encoding(tokens.ids[left], tokens.token_types[left], False, tokens.language)
        change = probability(tokens, tokens, 2) - probability(fewer, tokens, 2)
        assert found.segments[0].words[number].weight == pytest.approx(change, abs=1e-5)


def toy(kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """3 for the first part or the second, which say the same; -1 for the third; 2 for the fourth and fifth together."""
    first, second, third, fourth, fifth = kept.T
    return np.asarray(3.0 * (first | second) - third + 2.0 * (fourth & fifth))


@pytest.mark.parametrize(
    ("weigh", "expected"),
    [
        (occlusion, [0, 0, -1, 2, 2]),
        (two_sided_occlusion, [1.5, 1.5, -1, 1, 1]),
        (lambda value, parts: shapley(value, parts, 10), [1.5, 1.5, -1, 1, 1]),
    ],
)
def test_each_method_divides_what_words_say_as_it_is_defined(
    weigh: Callable[..., NDArray[np.float64]], expected: list[float]
) -> None:
    np.testing.assert_allclose(weigh(toy, 5), expected)


def test_shapley_values_sum_to_what_the_whole_text_says_beyond_none_of_it() -> None:
    question = EXPLAINER.text_instance(NEWS)
    parts = len(question.features)
    ends = question.score(np.asarray([[True] * parts, [False] * parts]))
    assert weights_of(explain(NEWS, method="shapley")).sum() == pytest.approx(ends[0] - ends[1], abs=1e-6)


@pytest.mark.parametrize(
    ("text", "entity"),
    [
        (NEWS, None),
        ("  Stock A soars while B plunges", "B"),
        ("平安银行：净利润大增；永吉股份：股东拟减持", "永吉股份"),
        ("很失望，客服 never answers 👎", None),
    ],
)
def test_integrated_gradients_are_complete(text: str, entity: str | None) -> None:
    gradients = Gradients(BUNDLE.graph)
    for target in BUNDLE.task.labels:
        question = EXPLAINER.text_instance(text, entity, target)
        (nothing, whole), _ = question.score_gradients(gradients, np.asarray([1e-9, 1.0]))
        assert EXPLAINER.attribute(question, "integrated_gradients").sum() == pytest.approx(
            whole - nothing, rel=0.01, abs=2e-4
        )
        assert whole == pytest.approx(question.scores[target], abs=0.05)


def test_gradients_are_taken_in_steps_that_can_be_given_up() -> None:
    steps: list[int] = []

    def step(work: Callable[[], Result]) -> Result:
        steps.append(1)
        if len(steps) > 3:
            raise TimeoutError
        return work()

    explainer = Explainer(BUNDLE, TOKENIZER, RUNTIME, step)
    with pytest.raises(TimeoutError):
        explainer.attribute(explainer.text_instance("Profit warning. " * 40), "integrated_gradients")
    assert len(steps) == 4


def test_a_word_speaks_for_one_label_and_against_another() -> None:
    words = words_of(NEWS)
    against = weights_of(explain(NEWS, target="positive"))
    told = explain(NEWS)
    assert told.target == "negative" == max(told.scores, key=lambda label: told.scores[label])
    assert words[int(weights_of(told).argmax())] == "plunge"
    assert weights_of(told).max() > 0.3
    assert against[words.index("plunge")] < -0.01


@pytest.mark.parametrize("method", METHODS)
def test_shares_of_attention_are_those_of_the_tokens(method: MethodName) -> None:
    found = explain("平安银行：净利润大增；永吉股份：股东拟减持", "永吉股份", method)
    assert [found.segments[0].words[place].is_entity for place in (0, 11, 14, 15)] == [False, True, True, False]
    weights = weights_of(found)
    assert np.isfinite(weights).all()
    if not METHODS[method].signed:
        assert (weights >= 0).all()
        assert 0 < weights.sum() < 1
    assert found.signed is METHODS[method].signed


@pytest.mark.parametrize("entity", [None, "Acme"])
def test_shares_of_attention_are_those_of_the_published_methods(entity: str | None) -> None:
    tokens = TOKENIZER.encode(NEWS, entity)
    maps = AttentionMapRuntime(BUNDLE.graph).run(collate([tokens], TOKENIZER.pad_id))
    read = tokens.token_types / tokens.token_types.sum() if entity else np.full(tokens.length, 1 / tokens.length)
    along, norms, last = np.eye(tokens.length), np.zeros(tokens.length), np.zeros((tokens.length, tokens.length))
    for layer in range(maps.layers):
        last = maps.attention(layer)[0].mean(axis=0)
        along = (last + np.eye(tokens.length)) / 2 @ along
        given = np.einsum("htp,hpw->htw", maps.values[layer, 0], maps.mixing[layer])
        carried = np.einsum("hij,hj->ij", maps.attention(layer)[0], np.sqrt((given**2).sum(axis=-1)))
        norms += read @ (carried / carried.sum(axis=1, keepdims=True)) / maps.layers
    own = pooling_weights(tokens)
    np.testing.assert_allclose(attention_attribution(maps, own), read @ last, atol=1e-6)
    np.testing.assert_allclose(rollout(maps, own), read @ along, atol=1e-6)
    np.testing.assert_allclose(value_norm(maps, own), norms, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("text", ["up", "涨", "👍", "ቀበሌ ᚠᚢᚦ", "\u200bup", "a"])
def test_texts_of_one_token_or_of_none_that_is_known_are_explained(text: str, method: MethodName) -> None:
    found = explain(text, method=method)
    assert np.isfinite(weights_of(found)).all()
    assert found.segments[0].read_span == (0, len(text))


def test_a_text_that_is_all_entity_rests_on_nothing_else() -> None:
    found = explain("Acme", "Acme")
    assert found.features == 0
    assert [(weight.weight, weight.is_entity) for weight in found.segments[0].words] == [(0, True)]


def test_attention_alone_is_not_offered_as_an_explanation() -> None:
    for task in ("sentiment", "intent", "replies"):
        assert DEFAULT_METHOD in SUPPORTED_METHODS[task]
        assert set(SUPPORTED_METHODS[task]) <= set(METHODS) - {"attention", "rollout"}


def test_nothing_readable_is_refused() -> None:
    with pytest.raises(EmptyTextError):
        explain(" \n")


class Counting:
    """The served runtime, and the tokens that it read."""

    def __init__(self) -> None:
        self.read = 0

    def run(self, batch: Batch) -> NDArray[np.float32]:
        self.read += int(batch.mask.sum())
        return np.tile(np.asarray([[0.1, 0.2, 0.7]], np.float32), (len(batch.ids), 1))


def test_an_over_long_text_says_what_was_read_and_is_weighed_in_bounded_time() -> None:
    text = " " + "Profit warning hits the shares. " * 120
    runtime = Counting()
    explainer = Explainer(BUNDLE, TOKENIZER, runtime)
    found = explainer.explain(explainer.text_instance(text), "occlusion")
    assert found.truncated
    assert found.segments[0].read_span[0] <= 1
    assert 500 < found.segments[0].read_span[1] < len(text)
    assert found.segments[0].words[-1].end <= found.segments[0].read_span[1]
    assert found.features < len(found.segments[0].words) < len(TOKENIZER.encode(text[:2000]).ids) * 2
    assert runtime.read <= 16_384 + 2 * 512


def test_an_over_long_text_is_read_around_its_entity() -> None:
    text = "word " * 900 + "Zorg plunges " + "word " * 900
    _, words = read(text, "Zorg")
    assert words.read[0] > 0
    assert [text[start:end] for word, (start, end) in enumerate(words.spans) if words.is_entity(word)] == ["Zorg"]


def test_words_that_share_a_token_are_taken_away_together_and_share_the_weight() -> None:
    _, words = read("股价 up 50%")
    parts = [[words_of("股价 up 50%")[word] for word in part.words] for part in features_of([words], 99)]
    assert parts == [["股", "价"], ["up"], ["50", "%"]]
    weights = weights_of(explain("股价 up 50%"))
    assert weights[0] == weights[1] != 0
    assert weights[3] == weights[4] != 0
    whole = EXPLAINER.attribute(EXPLAINER.text_instance("股价 up 50%"), "two_sided_occlusion")
    np.testing.assert_allclose([weights[:2].sum(), weights[2], weights[3:].sum()], whole)


def test_neighbours_go_together_where_parts_are_limited() -> None:
    _, words = read("a b c d e f g")
    assert [len(part.words) for part in features_of([words], 3)] == [3, 3, 1]
