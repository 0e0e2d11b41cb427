"""What a bundle's card says of its explanations: how far each method is to be trusted, as it was measured.

Measured after the export, so these sections are put into the card of a bundle that exists; an export writes a card
without them. The bundle's own digest changes by it, those of its graph and of all that is bound to that do not.
"""

from __future__ import annotations

import re
from pathlib import Path
from shutil import copyfile
from string import Template

from models.bundle import CARD, Bundle, save
from models.evaluation.faithfulness import CURVES, LONGEST, RANDOM_ORDERS, TABLE
from models.evaluation.stability import STABILITY
from models.explain.explainer import AUTO
from models.explain.methods import LEAST_TIMES, OFFERED, PARTS, Explained

BEFORE = "## Limits\n"

TEXT = Template("""\
## Explanations: $task
What the score of an answer loses without the $parts that a method weighs most (comprehensiveness: more is better) and
with only them (sufficiency: less is better), and the areas under the curves of deletion (small is better) and insertion
(large is better), beside $orders random orders; up to $rows $asked of at most $longest parts, from the model that
serves.

$faithfulness

![The score of the answer as the heaviest $parts are taken away, and put back]($picture)

$stability
`auto` is `$auto`. Offered is what reaches $least times random: $offered. Reproduce with
`heed faithfulness $task --data DATA --rows $rows`.

""")

STABLE = Template("""\
Whether words are weighed alike by the same weights in fp32, and where a change keeps every word of a text: rank
correlation of the words' weights and, in brackets, how often the heaviest word is the same.

$table
""")


def record(bundle: Bundle, task: Explained, rows: int, measured: Path) -> Bundle:
    """Put what `heed faithfulness` wrote to the folder `measured` into the card, in place of what it said before."""
    picture = f"explanations_{task}.png"
    copyfile(measured / CURVES, bundle.path / picture)
    stability = measured / STABILITY
    section = TEXT.substitute(
        task=task,
        parts=PARTS[task],
        asked="histories" if task == "recommend" else "validation rows of each set, texts",
        orders=RANDOM_ORDERS,
        rows=rows,
        longest=LONGEST,
        picture=picture,
        auto=AUTO,
        least=f"{LEAST_TIMES:g}",
        offered=", ".join(OFFERED[task]),
        faithfulness=(measured / TABLE).read_text(encoding="utf-8").strip(),
        stability=STABLE.substitute(table=stability.read_text(encoding="utf-8")) if stability.is_file() else "",
    )
    card = bundle.path / CARD
    card.write_text(with_section(card.read_text(encoding="utf-8"), section), encoding="utf-8")
    return save(bundle.path, bundle)


def with_section(card: str, section: str) -> str:
    """The card with a section before its limits, or at its end without any, in place of that of the same heading."""
    heading = section.partition("\n")[0]
    rest = re.sub(rf"^{re.escape(heading)}\n.*?(?=^## |\Z)", "", card, flags=re.MULTILINE | re.DOTALL)
    before, found, after = rest.partition(BEFORE)
    return before + section + found + after
