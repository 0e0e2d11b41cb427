from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import SHIPPED, load_bundle
from models.explain.attribution import METHODS
from models.explain.explainer import Explainer, Explanation, Result
from models.explain.gradients import Gradients
from models.explain.instance import make_features
from models.explain.methods import DEFAULT_METHOD, SUPPORTED_METHODS, MethodName
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
    rng = random.Random(11)
    samples = ["".join(rng.choices(SCRAPS, k=rng.randint(1, 24))) for _ in range(count * 2)]
    return [text for text in samples if text.strip() and any(c.isalnum() for c in text)][:count]


def bare(text: str) -> str:
    """Return the letters and digits without marks, width or form."""
    return "".join(c for c in unicodedata.normalize("NFKD", text) if c.isalnum())


def explain(
    text: str, entity: str | None = None, method: MethodName = DEFAULT_METHOD, target: str | None = None
) -> Explanation:
    return EXPLAINER.explain(EXPLAINER.text_instance(text, entity, target), method)


def read(text: str, entity: str | None = None) -> tuple[Encoding, WordSpans]:
    encoding = TOKENIZER.encode_with_words(text, entity)
    (words,) = encoding.segments
    return encoding.tokens, words


def words_of(text: str) -> list[str]:
    return [text[start:end] for start, end in read(text)[1].spans]


def test_word_spans_cover_all_but_white_space_in_two_thousand_mixed_texts() -> None:
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


def test_tokens_of_a_word_consist_of_its_characters() -> None:
    """If offsets drifted, a word after an emoji, a mark or a link would get the tokens of its neighbour."""
    for text in texts(2000):
        tokens, words = read(text)
        token_strings = TOKENIZER.token_strings(tokens)
        for position in range(1, tokens.length - 1):
            spans = [
                span
                for span, positions in zip(words.spans, words.token_positions, strict=True)
                if position in positions
            ]
            surface = "".join(text[start:end] for start, end in spans)
            piece = token_strings[position]
            assert spans or piece == "▁", (text, position)
            assert piece == "<unk>" or LINK_WORD.search(surface) or bare(piece) in bare(surface), (text, piece, surface)


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
def test_words_are_split_as_a_reader_sees_them(text: str, expected: list[str]) -> None:
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
def test_occlusion_equals_the_change_when_each_word_is_removed_by_hand(text: str, entity: str | None) -> None:
    tokens, words = read(text, entity)
    attributions = explain(text, entity, "occlusion", "positive").segments[0].words
    for attribution, positions in zip(attributions, words.token_positions, strict=True):
        if attribution.is_entity:
            assert attribution.weight == 0
            continue
        rest = [position for position in range(tokens.length) if position not in positions]
        shorter = Encoding(tokens.ids[rest], tokens.token_types[rest], False, tokens.language)
        change = probability(tokens, tokens, 2) - probability(shorter, tokens, 2)
        assert attribution.weight == pytest.approx(change, abs=1e-5)


def test_shapley_values_sum_to_the_score_of_the_text_less_that_of_no_text() -> None:
    instance = EXPLAINER.text_instance(NEWS)
    features = len(instance.features)
    full, empty = instance.score(np.asarray([[True] * features, [False] * features]))
    assert weights_of(explain(NEWS, method="shapley")).sum() == pytest.approx(full - empty, abs=1e-6)


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
        instance = EXPLAINER.text_instance(text, entity, target)
        (empty, full), _ = instance.score_gradients(gradients, np.asarray([1e-9, 1.0]))
        assert EXPLAINER.attribute(instance, "integrated_gradients").sum() == pytest.approx(
            full - empty, rel=0.01, abs=2e-4
        )
        assert full == pytest.approx(instance.scores[target], abs=0.05)


def test_gradients_run_in_steps_that_can_be_cancelled() -> None:
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
    explanation = explain(NEWS)
    assert explanation.target == "negative" == max(explanation.scores, key=lambda label: explanation.scores[label])
    assert words[int(weights_of(explanation).argmax())] == "plunge"
    assert weights_of(explanation).max() > 0.3
    assert against[words.index("plunge")] < -0.01


@pytest.mark.parametrize("method", METHODS)
def test_unsigned_weights_are_shares_and_the_entity_is_marked(method: MethodName) -> None:
    explanation = explain("平安银行：净利润大增；永吉股份：股东拟减持", "永吉股份", method)
    assert [explanation.segments[0].words[index].is_entity for index in (0, 11, 14, 15)] == [False, True, True, False]
    weights = weights_of(explanation)
    assert np.isfinite(weights).all()
    if not METHODS[method].signed:
        assert (weights >= 0).all()
        assert 0 < weights.sum() < 1
    assert explanation.signed is METHODS[method].signed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("text", ["up", "涨", "👍", "ቀበሌ ᚠᚢᚦ", "\u200bup", "a"])
def test_texts_of_one_token_or_of_unknown_tokens_are_explained(text: str, method: MethodName) -> None:
    explanation = explain(text, method=method)
    assert np.isfinite(weights_of(explanation)).all()
    assert explanation.segments[0].read_span == (0, len(text))


def test_a_text_that_is_only_the_entity_has_no_features() -> None:
    explanation = explain("Acme", "Acme")
    assert explanation.features == 0
    assert [(weight.weight, weight.is_entity) for weight in explanation.segments[0].words] == [(0, True)]


def test_no_text_task_supports_attention_alone() -> None:
    for task in ("sentiment", "intent", "replies"):
        assert DEFAULT_METHOD in SUPPORTED_METHODS[task]
        assert set(SUPPORTED_METHODS[task]) <= set(METHODS) - {"attention", "rollout"}


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(EmptyTextError):
        explain(" \n")


class CountingRuntime:
    """A runtime that answers every text alike and counts the tokens that it reads."""

    def __init__(self) -> None:
        self.tokens = 0

    def run(self, batch: Batch) -> NDArray[np.float32]:
        self.tokens += int(batch.mask.sum())
        return np.tile(np.asarray([[0.1, 0.2, 0.7]], np.float32), (len(batch.ids), 1))


def test_a_long_text_is_truncated_and_explained_with_bounded_work() -> None:
    text = " " + "Profit warning hits the shares. " * 120
    runtime = CountingRuntime()
    explainer = Explainer(BUNDLE, TOKENIZER, runtime)
    explanation = explainer.explain(explainer.text_instance(text), "occlusion")
    assert explanation.truncated
    assert explanation.segments[0].read_span[0] <= 1
    assert 500 < explanation.segments[0].read_span[1] < len(text)
    assert explanation.segments[0].words[-1].end <= explanation.segments[0].read_span[1]
    assert explanation.features < len(explanation.segments[0].words) < len(TOKENIZER.encode(text[:2000]).ids) * 2
    assert runtime.tokens <= 16_384 + 2 * 512


def test_a_long_text_is_read_around_its_entity() -> None:
    text = "word " * 900 + "Zorg plunges " + "word " * 900
    _, words = read(text, "Zorg")
    assert words.read_span[0] > 0
    assert [text[start:end] for word, (start, end) in enumerate(words.spans) if words.is_entity(word)] == ["Zorg"]


def test_words_that_share_a_token_form_one_feature_and_share_its_weight() -> None:
    _, words = read("股价 up 50%")
    features = [[words_of("股价 up 50%")[word] for word in feature.words] for feature in make_features([words], 99)]
    assert features == [["股", "价"], ["up"], ["50", "%"]]
    weights = weights_of(explain("股价 up 50%"))
    assert weights[0] == weights[1] != 0
    assert weights[3] == weights[4] != 0
    by_feature = EXPLAINER.attribute(EXPLAINER.text_instance("股价 up 50%"), "two_sided_occlusion")
    np.testing.assert_allclose([weights[:2].sum(), weights[2], weights[3:].sum()], by_feature)


def test_neighbouring_words_are_joined_to_stay_within_the_limit() -> None:
    _, words = read("a b c d e f g")
    assert [len(feature.words) for feature in make_features([words], 3)] == [3, 3, 1]
