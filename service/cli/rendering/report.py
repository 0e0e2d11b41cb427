"""An analysis of many texts as one self-contained page: bars, maps of heads, a curve and coloured texts.

Knows the analysis, but not how it is made. Markup in a text is shown, never executed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape

from models.evaluation.attention_analysis import AttentionAnalysis, HeadRole
from models.evaluation.head_ablation import AblationResult
from models.evaluation.influential_words import MIN_MEAN_WEIGHT, MIN_TEXTS, ExplainedText, InfluentialWord
from service.cli.rendering.explanation import coloured_words

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #16181d;
background: #fff }}
h2 {{ margin-top: 2.5rem }} h3 {{ margin: 1rem 0 .3rem; overflow-wrap: anywhere }}
.note {{ color: #555; font-size: .9rem; max-width: 46rem }}
.columns {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 0 2rem }}
.scroll {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: .9rem }} th {{ font-weight: 600; text-align: left }}
th, td {{ padding: .2rem .5rem }} .figure {{ text-align: right; font-variant-numeric: tabular-nums }}
.bars td:nth-child(2) {{ width: 8rem }} .bars td:first-child {{ min-width: 6rem; overflow-wrap: anywhere }}
.bar {{ display: block; height: .9rem; background: #26a269; min-width: 1px }} .bar.wrong {{ background: #e01b24 }}
.map td, .map th[scope=col] {{ text-align: center; min-width: 2.4rem }} .map th {{ white-space: nowrap }}
.map td {{ font-size: .8rem; font-variant-numeric: tabular-nums }}
.kinds td:nth-child(2) {{ width: min(24rem, 40vw) }} section {{ margin: .8rem 0 1.2rem }}
.text {{ white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid #ddd; padding-left: .75rem;
margin: .3rem 0 }}
.text span {{ border-radius: .2rem }} .named {{ outline: 1px solid #777 }}
svg {{ max-width: 100%; height: auto }}
</style>
<h1>{title}</h1>
{body}
</html>
"""

MEASURES = (
    ("entropy", "How evenly each head attends (1: to all tokens alike)"),
    ("distance", "How far it attends, in tokens"),
    ("itself", "Share of the token itself (the diagonal)"),
    ("previous", "Share of the token before"),
    ("following", "Share of the token after"),
    ("separator", "Share of the marks at both ends"),
    ("rare", "Share of rare tokens, relative to uniform attention"),
)
MIN_SHARE = 0.0005
"""A kind of word with a smaller share is not shown."""

WIDTH, HEIGHT, EDGE = 640, 260, 44
"""Size of the curve in pixels, and the margin for the labels of its axes."""

Pair = tuple[float, float]
"""A share for right answers and a share for wrong ones."""


def report_page(title: str, analysis: AttentionAnalysis) -> str:
    """Return the whole page."""
    sections = [
        render_summary(analysis),
        *render_words(analysis),
        *render_heads(analysis),
        *render_ablation(analysis),
        *render_mistakes(analysis),
    ]
    return PAGE.format(title=escape(title), body="\n".join(sections))


def render_summary(analysis: AttentionAnalysis) -> str:
    labels = "none has a label, so the report cannot show mistakes"
    if analysis.labelled:
        labels = f"{analysis.labelled:,} have a label, and {analysis.wrong:,} of those are answered wrongly"
    return f"<p>{analysis.texts:,} texts; {labels}.</p>"


def render_words(analysis: AttentionAnalysis) -> Iterable[str]:
    yield "<h2>Words that drive each answer</h2>"
    yield render_note(
        "Weights are means over the texts with this answer, in points of its probability. Words have at least "
        f"{MIN_TEXTS} such texts and {MIN_MEAN_WEIGHT} points. The last column counts texts."
    )
    peak = max((word.weight for words in analysis.influential_words.values() for word in words), default=1.0)
    driven = {label: words for label, words in analysis.influential_words.items() if words}
    columns = (f"<div><h3>{escape(label)}</h3>{render_bars(words, peak)}</div>" for label, words in driven.items())
    yield f'<div class="columns">{"".join(columns)}</div>'
    without = [label for label in analysis.influential_words if label not in driven]
    if without:
        yield render_note(f"Without such a word: {', '.join(without)}.")


def render_bars(words: Sequence[InfluentialWord], peak: float) -> str:
    rows = (
        f"<tr><td>{escape(word.word)}</td><td>{render_bar(word.weight / peak)}</td>"
        f'<td class="figure">{word.weight:+.3f}</td><td class="figure">{word.texts}</td></tr>'
        for word in words
    )
    return f'<table class="bars">{"".join(rows)}</table>'


def render_bar(share: float, kind: str = "") -> str:
    return f'<span class="bar {kind}" style="width:{100 * max(0.0, min(1.0, share)):.1f}%"></span>'


def render_heads(analysis: AttentionAnalysis) -> Iterable[str]:
    yield "<h2>What heads do</h2>"
    counts = Counter(role.role for role in analysis.roles)
    roles = ", ".join(f"{role} {count}" for role, count in counts.most_common())
    yield render_note(f"Roles name where most of a head's attention goes: {roles}. Rows are layers, columns are heads.")
    layers = group_by_layer(analysis.roles)
    yield render_table([[role.role for role in layer] for layer in layers], None)
    for name, meaning in MEASURES:
        values = [[float(getattr(role, name)) for role in layer] for layer in layers]
        cells = [[f"{value:.2f}" for value in layer] for layer in values]
        yield f"<h3>{escape(meaning)}</h3>" + render_table(cells, values)


def group_by_layer(roles: Sequence[HeadRole]) -> list[list[HeadRole]]:
    return [[role for role in roles if role.index[0] == layer] for layer in sorted({role.index[0] for role in roles})]


def render_table(cells: Sequence[Sequence[str]], values: Sequence[Sequence[float]] | None) -> str:
    """Return a table with a row per layer. With values, a cell is darker the larger its value."""
    peak = max((value for layer in values or () for value in layer), default=0.0) or 1.0
    lines = ["<tr><th></th>" + "".join(f'<th scope="col">{head}</th>' for head in range(len(cells[0]))) + "</tr>"]
    for layer, row in enumerate(cells):
        columns = []
        for head, cell in enumerate(row):
            share = values[layer][head] / peak if values else 0.0
            columns.append(f'<td style="background:rgba(53,132,228,{0.75 * max(share, 0.0):.2f})">{escape(cell)}</td>')
        lines.append(f'<tr><th scope="row">layer {layer}</th>{"".join(columns)}</tr>')
    return f'<div class="scroll"><table class="map">{"".join(lines)}</table></div>'


def render_ablation(analysis: AttentionAnalysis) -> Iterable[str]:
    yield "<h2>Heads that can be removed</h2>"
    yield render_note(
        "Each head is masked in the graph that serves, and the texts are answered again. The table shows how much "
        "probabilities change on average, in hundredths."
    )
    changes = {result.heads[0]: 100 * result.score_change for result in analysis.single[1:]}
    values = [[changes[role.index] for role in layer] for layer in group_by_layer(analysis.roles)]
    yield render_table([[f"{value:.1f}" for value in layer] for layer in values], values)
    yield "<h3>Together, those with the smallest change first</h3>" + render_note(removable_heads(analysis))
    yield render_curve(analysis)


def removable_heads(analysis: AttentionAnalysis) -> str:
    """Return a sentence on how many heads can be removed together."""
    whole = analysis.single[0]
    count = max((len(result.heads) for result in analysis.cumulative if is_as_good(result, whole)), default=0)
    by = "at most 1 % of answers change" if whole.accuracy is None else "as many answers are right as with all of them"
    return f"{count} of {len(analysis.roles)} heads can be removed together so that {by}."


def is_as_good(result: AblationResult, whole: AblationResult) -> bool:
    if result.accuracy is None or whole.accuracy is None:
        return result.changed <= 0.01
    return result.accuracy >= whole.accuracy


def render_curve(analysis: AttentionAnalysis) -> str:
    results = [analysis.single[0], *analysis.cumulative]
    head_count = len(analysis.roles)
    curves = [("unchanged answers", "#3584e4", [1 - result.changed for result in results])]
    if analysis.single[0].accuracy is not None:
        curves.append(("right answers", "#26a269", [result.accuracy or 0.0 for result in results]))

    def point(count: int, share: float) -> tuple[str, str]:
        x = EDGE + count / head_count * (WIDTH - 2 * EDGE)
        return f"{x:.1f}", f"{HEIGHT - EDGE - share * (HEIGHT - 2 * EDGE):.1f}"

    shapes = []
    for index, (name, colour, shares) in enumerate(curves):
        points = " ".join(
            ",".join(point(len(result.heads), share)) for result, share in zip(results, shares, strict=True)
        )
        shapes.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        shapes.append(f'<text x="{EDGE + 8}" y="{HEIGHT - EDGE - 28 + 18 * index}" fill="{colour}">{name}</text>')
    for share in (0.0, 0.5, 1.0):
        x, y = point(0, share)
        shapes.append(f'<line x1="{x}" x2="{WIDTH - EDGE}" y1="{y}" y2="{y}" stroke="#ccc"/>')
        shapes.append(f'<text x="{EDGE - 8}" y="{float(y) + 4}" text-anchor="end">{share:.0%}</text>')
    for count in (0, head_count // 2, head_count):
        x, _ = point(count, 0)
        shapes.append(f'<text x="{x}" y="{HEIGHT - EDGE + 18}" text-anchor="middle">{count}</text>')
    shapes.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">heads masked</text>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" font-size="13" font-family="system-ui" '
        f'aria-label="Answers as heads are masked">{"".join(shapes)}</svg>'
    )


def render_mistakes(analysis: AttentionAnalysis) -> Iterable[str]:
    if not analysis.wrong:
        return
    yield "<h2>Where the model looks when it is wrong</h2>"
    yield render_note(
        "Shares by kind of word, for right answers (green) and wrong ones (red). The first table shares out the size "
        "of the weights, the second attention times the values that it carries."
    )
    for title, shares in (("Rests on", analysis.attribution_by_kind), ("Looks at", analysis.attention_by_kind)):
        if shares:
            yield f"<h3>{title}</h3>" + render_kinds(shares)
    yield "<h3>The most frequent mistakes</h3>" + render_confusions(analysis)
    yield "<h3>The surest mistakes</h3>"
    yield render_note("Green words speak for the predicted label, red ones against it.")
    yield "".join(render_mistake(mistake) for mistake in analysis.mistakes)


def render_kinds(shares: dict[str, Pair]) -> str:
    """Return the bars of each kind of word, right answers above wrong ones."""
    peak = max(share for pair in shares.values() for share in pair) or 1.0
    rows = (
        f"<tr><td>{kind}</td><td>{render_bar(right / peak)}{render_bar(wrong / peak, 'wrong')}</td>"
        f'<td class="figure">{right:.1%}<br>{wrong:.1%}</td></tr>'
        for kind, (right, wrong) in shares.items()
        if max(right, wrong) >= MIN_SHARE
    )
    return f'<table class="bars kinds">{"".join(rows)}</table>'


def render_mistake(mistake: ExplainedText) -> str:
    towards = f" towards {escape(mistake.row.entity)}" if mistake.row.entity else ""
    score = mistake.explanation.scores[mistake.answer]
    title = f"{escape(mistake.answer)} ({score:.2f}){towards}, labelled {escape(str(mistake.row.label))}"
    turns = (
        f'<p class="text" dir="auto">{coloured_words(segment.text, mistake.explanation, turn)}</p>'
        for turn, segment in enumerate(mistake.row.instance.encoding.segments)
    )
    return f"<section><div>{title}</div>{''.join(turns)}</section>"


def render_confusions(analysis: AttentionAnalysis) -> str:
    rows = (
        f"<tr><td>{escape(confusion.label)}</td><td>{escape(confusion.answer)}</td>"
        f'<td class="figure">{confusion.texts}</td></tr>'
        for confusion in analysis.confusions
    )
    head = '<tr><th scope="col">labelled</th><th scope="col">predicted</th><th scope="col">texts</th></tr>'
    return f"<table>{head}{''.join(rows)}</table>"


def render_note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'
