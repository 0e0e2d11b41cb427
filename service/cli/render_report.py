"""Findings as one page that needs nothing else: bars, maps of heads, a curve and coloured texts, all of it markup.

Knows findings, nothing of how they are found. Whatever a text holds is shown as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from models.evaluation.attention_analysis import AttentionAnalysis, HeadRole
from models.evaluation.head_ablation import AblationResult
from models.evaluation.influential_words import MIN_MEAN_WEIGHT, MIN_TEXTS, ExplainedText, InfluentialWord
from service.cli.render_explanation import coloured_words

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
    ("entropy", "How evenly each head looks (1: at all tokens alike)"),
    ("distance", "How far it looks, in tokens"),
    ("itself", "Share that goes to the token itself (the diagonal)"),
    ("previous", "Share that goes to the token before"),
    ("following", "Share that goes to the token after"),
    ("separator", "Share that goes to the marks at both ends"),
    ("rare", "What rare tokens get, beside what even attention would give them"),
)
MIN_SHARE = 0.0005
"""Of a kind of word, to be shown."""

WIDTH, HEIGHT, EDGE = 640, 260, 44
"""Of the curve, in pixels, and the room for what its axes say."""


def report_page(title: str, findings: AttentionAnalysis) -> str:
    parts = [summary(findings), *words(findings), *heads(findings), *removal(findings), *mistakes(findings)]
    return PAGE.format(title=escape(title), body="\n".join(parts))


def summary(findings: AttentionAnalysis) -> str:
    known = "none has a label, so nothing is said of mistakes"
    if findings.labelled:
        known = f"{findings.labelled:,} have a label, and {findings.wrong:,} of those are answered otherwise"
    return f"<p>{findings.texts:,} texts; {known}.</p>"


def words(findings: AttentionAnalysis) -> Iterable[str]:
    yield "<h2>Words that drive each answer</h2>"
    yield note(
        f"In the mean over the texts that were given the answer, in points of its probability; words of at least "
        f"{MIN_TEXTS} such texts and {MIN_MEAN_WEIGHT} points. The number is of texts."
    )
    peak = max((word.weight for own in findings.influential_words.values() for word in own), default=1.0)
    driven = {label: own for label, own in findings.influential_words.items() if own}
    columns = (f"<div><h3>{escape(label)}</h3>{bars(own, peak)}</div>" for label, own in driven.items())
    yield f'<div class="columns">{"".join(columns)}</div>'
    others = [label for label in findings.influential_words if label not in driven]
    if others:
        yield note(f"Without such a word: {', '.join(others)}.")


def bars(driving: Sequence[InfluentialWord], peak: float) -> str:
    rows = (
        f"<tr><td>{escape(one.word)}</td><td>{bar(one.weight / peak)}</td>"
        f'<td class="figure">{one.weight:+.3f}</td><td class="figure">{one.texts}</td></tr>'
        for one in driving
    )
    return f'<table class="bars">{"".join(rows)}</table>'


def bar(share: float, kind: str = "") -> str:
    return f'<span class="bar {kind}" style="width:{100 * max(0.0, min(1.0, share)):.1f}%"></span>'


def heads(findings: AttentionAnalysis) -> Iterable[str]:
    yield "<h2>What heads do</h2>"
    names = {role.index: role.role for role in findings.roles}
    counts = {name: list(names.values()).count(name) for name in dict.fromkeys(names.values())}
    told = ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
    yield note(f"Named by where most of their attention goes: {told}. Rows are layers, columns are heads.")
    yield table([[role.role for role in own] for own in by_layer(findings.roles)], None)
    for name, about in MEASURES:
        values = [[float(getattr(role, name)) for role in own] for own in by_layer(findings.roles)]
        yield f"<h3>{escape(about)}</h3>" + table([[f"{value:.2f}" for value in own] for own in values], values)


def by_layer(roles: Sequence[HeadRole]) -> list[list[HeadRole]]:
    return [[role for role in roles if role.index[0] == layer] for layer in sorted({role.index[0] for role in roles})]


def table(cells: Sequence[Sequence[str]], values: Sequence[Sequence[float]] | None) -> str:
    """A row for each layer; where there are values, cells are as dark as theirs."""
    peak = max((value for own in values or () for value in own), default=0.0) or 1.0
    lines = ["<tr><th></th>" + "".join(f'<th scope="col">{head}</th>' for head in range(len(cells[0]))) + "</tr>"]
    for layer, own in enumerate(cells):
        found = []
        for head, cell in enumerate(own):
            share = values[layer][head] / peak if values else 0.0
            found.append(f'<td style="background:rgba(53,132,228,{0.75 * max(share, 0.0):.2f})">{escape(cell)}</td>')
        lines.append(f'<tr><th scope="row">layer {layer}</th>{"".join(found)}</tr>')
    return f'<div class="scroll"><table class="map">{"".join(lines)}</table></div>'


def removal(findings: AttentionAnalysis) -> Iterable[str]:
    yield "<h2>Heads that can be removed</h2>"
    yield note(
        "Each head is masked in the graph that serves, and the texts are answered again: how much the probabilities "
        "move in the mean, in hundredths."
    )
    moved = {one.heads[0]: 100 * one.score_change for one in findings.single[1:]}
    layers = by_layer(findings.roles)
    values = [[moved[role.index] for role in own] for own in layers]
    yield table([[f"{value:.1f}" for value in own] for own in values], values)
    yield "<h3>Together, those that move least first</h3>" + note(spared(findings))
    yield curve(findings)


def spared(findings: AttentionAnalysis) -> str:
    """How many heads can go together, by what was measured."""
    whole = findings.single[0]
    kept = [one for one in findings.cumulative if is_as_good(one, whole)]
    count = max((len(one.heads) for one in kept), default=0)
    by = "at most 1 % of answers change" if whole.accuracy is None else "as many answers are right as with all of them"
    return f"{count} of {len(findings.roles)} heads can be taken away together so that {by}."


def is_as_good(one: AblationResult, whole: AblationResult) -> bool:
    if one.accuracy is None or whole.accuracy is None:
        return one.changed <= 0.01
    return one.accuracy >= whole.accuracy


def curve(findings: AttentionAnalysis) -> str:
    every = [findings.single[0], *findings.cumulative]
    most = len(findings.roles)
    lines = [("answers that stay the same", "#3584e4", [1 - one.changed for one in every])]
    if findings.single[0].accuracy is not None:
        lines.append(("right answers", "#26a269", [one.accuracy or 0.0 for one in every]))

    def at(count: int, share: float) -> str:
        across = EDGE + count / most * (WIDTH - 2 * EDGE)
        return f"{across:.1f},{HEIGHT - EDGE - share * (HEIGHT - 2 * EDGE):.1f}"

    drawn = []
    for number, (name, colour, shares) in enumerate(lines):
        points = " ".join(at(len(one.heads), share) for one, share in zip(every, shares, strict=True))
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        drawn.append(f'<text x="{EDGE + 8}" y="{HEIGHT - EDGE - 28 + 18 * number}" fill="{colour}">{name}</text>')
    for share in (0.0, 0.5, 1.0):
        left, down = at(0, share).split(",")
        drawn.append(f'<line x1="{left}" x2="{WIDTH - EDGE}" y1="{down}" y2="{down}" stroke="#ccc"/>')
        drawn.append(f'<text x="{EDGE - 8}" y="{float(down) + 4}" text-anchor="end">{share:.0%}</text>')
    for count in (0, most // 2, most):
        drawn.append(
            f'<text x="{at(count, 0).split(",")[0]}" y="{HEIGHT - EDGE + 18}" text-anchor="middle">{count}</text>'
        )
    drawn.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">heads masked</text>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" font-size="13" font-family="system-ui" '
        f'aria-label="Answers as heads are masked">{"".join(drawn)}</svg>'
    )


def mistakes(findings: AttentionAnalysis) -> Iterable[str]:
    if not findings.wrong:
        return
    yield "<h2>Where the model looks when it is wrong</h2>"
    yield note(
        "By kind of word, for right answers (green) and wrong ones (red): the share of what the answer rests on (the "
        "size of weights), and of where the model looks (attention times what it carries)."
    )
    for title, found in (("Rests on", findings.attribution_by_kind), ("Looks at", findings.attention_by_kind)):
        if found:
            yield f"<h3>{title}</h3>" + kinds(found)
    yield "<h3>The most frequent mistakes</h3>" + frequent(findings)
    yield "<h3>The surest mistakes</h3>"
    yield note("Green speaks for the answer that was given, red against it.")
    yield "".join(mistake(one) for one in findings.mistakes)


def kinds(found: dict[str, tuple[float, float]]) -> str:
    peak = max(share for both in found.values() for share in both) or 1.0
    rows = (
        f"<tr><td>{kind}</td><td>{bar(right / peak)}{bar(wrong / peak, 'wrong')}</td>"
        f'<td class="figure">{right:.1%}<br>{wrong:.1%}</td></tr>'
        for kind, (right, wrong) in found.items()
        if max(right, wrong) >= MIN_SHARE
    )
    return f'<table class="bars kinds">{"".join(rows)}</table>'


def mistake(one: ExplainedText) -> str:
    towards = f" towards {escape(one.row.entity)}" if one.row.entity else ""
    score = one.explanation.scores[one.answer]
    said = f"{escape(one.answer)} ({score:.2f}){towards}, labelled {escape(str(one.row.label))}"
    turns = (
        f'<p class="text" dir="auto">{coloured_words(words.text, one.explanation, turn)}</p>'
        for turn, words in enumerate(one.row.instance.encoding.segments)
    )
    return f"<section><div>{said}</div>{''.join(turns)}</section>"


def frequent(findings: AttentionAnalysis) -> str:
    rows = (
        f'<tr><td>{escape(one.label)}</td><td>{escape(one.answer)}</td><td class="figure">{one.texts}</td></tr>'
        for one in findings.confusions
    )
    head = '<tr><th scope="col">labelled</th><th scope="col">answered</th><th scope="col">texts</th></tr>'
    return f"<table>{head}{''.join(rows)}</table>"


def note(sentence: str) -> str:
    return f'<p class="note">{escape(sentence)}</p>'
