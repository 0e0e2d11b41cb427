"""An explanation as coloured words: in a terminal, or as one page that needs nothing else.

Knows explanations of a text, nothing of how they are made.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from html import escape
from pathlib import Path

from rich.text import Text

from models.explain.attribution import METHODS
from models.explain.explainer import Explanation, WordAttribution

FOR, AGAINST, SEEN = (38, 162, 105), (224, 27, 36), (53, 132, 228)
"""Red, green and blue of a word that speaks for the target, of one against it, and of one that attention is on."""

FAMILIES = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Noto Emoji")
"""Fonts for a picture, those of them that are there: matplotlib's own has no Chinese."""

FAMILIES = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Noto Emoji")
"""Fonts for a picture, those of them that are there: matplotlib's own has no Chinese."""

PAGE = """<!doctype html>
<html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 1.1rem/1.9 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #111;
background: #fff }}
.text {{ white-space: pre-wrap; overflow-wrap: anywhere }}
.text span {{ border-radius: .2rem; padding: .1rem 0 }}
.named {{ outline: 1px solid #777 }}
.note {{ color: #555; font-size: .9rem }}
</style>
<h1>{title}</h1>
<p class="text" dir="auto">{words}</p>
<p class="note">{notes}</p>
</html>
"""


def title(explanation: Explanation) -> str:
    target = explanation.target
    return f"{target}: {explanation.scores[target]:.3f}"


def notes(explanation: Explanation) -> list[str]:
    """What a reader has to know of the colours, and of what was not read."""
    lines = [f"{explanation.method}: {METHODS[explanation.method].about}."]
    if explanation.signed:
        lines.append(f"Green speaks for {explanation.target}, red against it.")
    else:
        lines.append("Blue is where the model looks, which speaks neither for nor against a label.")
    if explanation.truncated:
        lines.append(f"Only characters {explanation.text.read_span[0]} to {explanation.text.read_span[1]} were read.")
    return lines


def strongest_words(text: str, explanation: Explanation, count: int = 6) -> str:
    """The words that weigh most with their weights, for terminals without colours and eyes that do not see them."""
    found = sorted(explanation.text.words, key=lambda weight: -abs(weight.weight))[:count]
    return ", ".join(f"{visible(text[weight.start : weight.end])} {weight.weight:+.3f}" for weight in found)


def text_runs(
    text: str, explanation: Explanation, turn: int = -1
) -> Iterator[tuple[str, WordAttribution | None, float]]:
    """All of the text in order: words with their weight and its share of the largest, and what stands between them.

    Of a dialogue it is the text of one turn that was read, the newest unless another is given.
    """
    every = (abs(weight.weight) for passage in explanation.segments for weight in passage.words)
    peak = max(every, default=0.0) or 1.0
    place = 0
    for weight in explanation.segments[turn].words:
        yield text[place : weight.start], None, 0.0
        yield text[weight.start : weight.end], weight, weight.weight / peak
        place = weight.end
    yield text[place:], None, 0.0


def colour(share: float, signed: bool) -> str:
    """Between white and the full colour."""
    full = (FOR if share > 0 else AGAINST) if signed else SEEN
    return "rgb({},{},{})".format(*(round(255 + (level - 255) * abs(share)) for level in full))


def terminal_text(text: str, explanation: Explanation) -> Text:
    """The text with coloured grounds; an entity that is asked about is underlined."""
    shown = Text()
    for piece, weight, share in text_runs(text, explanation):
        if weight is None:
            shown.append(visible(piece))
            continue
        ground = f"black on {colour(share, explanation.signed)}" if abs(share) >= 0.05 else ""
        shown.append(visible(piece), "underline" if weight.is_entity else ground)
    return shown


def save_picture(text: str, explanation: Explanation, path: Path, count: int = 12) -> None:
    """A PNG file: the words that weigh most as bars, in the order of the text. Raises ModuleNotFoundError."""
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    words = sorted(explanation.text.words, key=lambda word: -abs(word.weight))[:count]
    shown = sorted(words, key=lambda word: -word.start)
    figure = Figure(figsize=(6.4, 1 + 0.32 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    full = [FOR if word.weight > 0 else AGAINST for word in shown] if explanation.signed else [SEEN] * len(shown)
    fills = [tuple(level / 255 for level in colour) for colour in full]
    axes.barh(range(len(shown)), [word.weight for word in shown], color=fills)
    axes.set_yticks(range(len(shown)), [visible(text[word.start : word.end])[:40] for word in shown], parse_math=False)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_title(title(explanation))
    unit = "points of its probability" if explanation.signed else "share of attention"
    axes.set_xlabel(f"{unit}, {explanation.method}")
    known = set(font_manager.get_font_names())
    for label in axes.get_yticklabels():
        label.set_fontfamily([family for family in FAMILIES if family in known])
    with warnings.catch_warnings(action="ignore"):  # of characters that no font of this machine has
        figure.savefig(path, dpi=110, format="png")


def visible(text: str) -> str:
    """Without controls, by which a text could steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t\u200d" else "\ufffd" for c in text)


def coloured_words(text: str, explanation: Explanation, turn: int = -1) -> str:
    """The text as markup, with coloured grounds."""
    words = []
    for piece, weight, share in text_runs(text, explanation, turn):
        if weight is None:
            words.append(escape(piece))
            continue
        ground = colour(share, explanation.signed)
        named = ' class="named"' if weight.is_entity else ""
        words.append(f'<span{named} style="background:{ground}" title="{weight.weight:+.3f}">{escape(piece)}</span>')
    return "".join(words)


def explanation_page(text: str, explanation: Explanation) -> str:
    """One HTML page without scripts or outside requests; whatever the text holds is shown as it is."""
    return PAGE.format(
        title=escape(title(explanation)),
        words=coloured_words(text, explanation),
        notes="<br>".join(escape(line) for line in notes(explanation)),
    )
