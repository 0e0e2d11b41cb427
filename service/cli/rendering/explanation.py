"""An explanation as coloured words: in a terminal, as a self-contained HTML page, or as a picture.

Knows explanations of a text, but not how they are made.
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
"""RGB colours of words for the target, words against it, and words with attention, which has no sign."""

FAMILIES = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Noto Emoji")
"""Fonts for a picture, as far as they are installed. The font that matplotlib brings has no Chinese."""

MIN_COLOURED_SHARE = 0.05
"""A word whose weight is a smaller share of the largest weight is not coloured in a terminal."""

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
    """Return what a reader must know about the colours, and which part of the text was not read."""
    lines = [f"{explanation.method}: {METHODS[explanation.method].about}."]
    if explanation.signed:
        lines.append(f"Green speaks for {explanation.target}, red against it.")
    else:
        lines.append("Blue words get the attention, which speaks neither for nor against a label.")
    if explanation.truncated:
        lines.append(f"Only characters {explanation.text.read_span[0]} to {explanation.text.read_span[1]} were read.")
    return lines


def strongest_words(text: str, explanation: Explanation, count: int = 6) -> str:
    """Return the words with the largest weights, for terminals and readers without colours."""
    words = sorted(explanation.text.words, key=lambda word: -abs(word.weight))[:count]
    return ", ".join(f"{visible(text[word.start : word.end])} {word.weight:+.3f}" for word in words)


def text_runs(
    text: str, explanation: Explanation, turn: int = -1
) -> Iterator[tuple[str, WordAttribution | None, float]]:
    """Yield the whole text in order: words with their attribution and its share of the largest, and the gaps.

    For a dialogue, `text` is that of one turn. The default is the newest.
    """
    peak = max((abs(word.weight) for segment in explanation.segments for word in segment.words), default=0.0) or 1.0
    position = 0
    for word in explanation.segments[turn].words:
        yield text[position : word.start], None, 0.0
        yield text[word.start : word.end], word, word.weight / peak
        position = word.end
    yield text[position:], None, 0.0


def colour(share: float, signed: bool) -> str:
    """Return a CSS colour between white and the full colour."""
    full = (FOR if share > 0 else AGAINST) if signed else SEEN
    return "rgb({},{},{})".format(*(round(255 + (level - 255) * abs(share)) for level in full))


def terminal_text(text: str, explanation: Explanation) -> Text:
    """Return the text with coloured words. The entity is underlined."""
    styled = Text()
    for run, word, share in text_runs(text, explanation):
        if word is None:
            styled.append(visible(run))
            continue
        background = f"black on {colour(share, explanation.signed)}" if abs(share) >= MIN_COLOURED_SHARE else ""
        styled.append(visible(run), "underline" if word.is_entity else background)
    return styled


def save_picture(text: str, explanation: Explanation, path: Path, count: int = 12) -> None:
    """Write a PNG file with the largest weights as bars, in the order of the text. Raises ModuleNotFoundError."""
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    words = sorted(explanation.text.words, key=lambda word: -abs(word.weight))[:count]
    bars = sorted(words, key=lambda word: -word.start)
    figure = Figure(figsize=(6.4, 1 + 0.32 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    full = [FOR if word.weight > 0 else AGAINST for word in bars] if explanation.signed else [SEEN] * len(bars)
    fills = [tuple(level / 255 for level in colour) for colour in full]
    axes.barh(range(len(bars)), [word.weight for word in bars], color=fills)
    axes.set_yticks(range(len(bars)), [visible(text[word.start : word.end])[:40] for word in bars], parse_math=False)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_title(title(explanation))
    unit = "points of its probability" if explanation.signed else "share of attention"
    axes.set_xlabel(f"{unit}, {explanation.method}")
    installed = set(font_manager.get_font_names())
    for label in axes.get_yticklabels():
        label.set_fontfamily([family for family in FAMILIES if family in installed])
    with warnings.catch_warnings(action="ignore"):  # about characters that no font of this machine has
        figure.savefig(path, dpi=110, format="png")


def visible(text: str) -> str:
    """Replace control characters, with which a text could steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t\u200d" else "\ufffd" for c in text)


def coloured_words(text: str, explanation: Explanation, turn: int = -1) -> str:
    """Return the text as markup with coloured words."""
    markup = []
    for run, word, share in text_runs(text, explanation, turn):
        if word is None:
            markup.append(escape(run))
            continue
        background = colour(share, explanation.signed)
        entity = ' class="named"' if word.is_entity else ""
        markup.append(f'<span{entity} style="background:{background}" title="{word.weight:+.3f}">{escape(run)}</span>')
    return "".join(markup)


def explanation_page(text: str, explanation: Explanation) -> str:
    """Return an HTML page without scripts or external requests. Markup in the text is shown, never executed."""
    return PAGE.format(
        title=escape(title(explanation)),
        words=coloured_words(text, explanation),
        notes="<br>".join(escape(line) for line in notes(explanation)),
    )
