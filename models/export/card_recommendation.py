"""The model card of a recommender bundle, in the model-card convention (Mitchell et al. 2019).

Every figure in it comes from the evaluation and the export that made the bundle; the prose is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from string import Template

from models.bundle import Manifest
from models.evaluation.recommendation import COMMAND, MeasuredRecommender, recommend_table
from models.training.recommendation import RecommendRun

TEXT = Template("""\
# $name $version

Scores of items after what a user did, read from the items' texts, English and Chinese, so that an item nobody has taken
yet is scored too. It says which past items each score leans on.

## Model
- A BERT encoder gives each item's text a vector; base: `$base` (SHA-256 of its weights `$base_digest`):
  intfloat/multilingual-e5-small (MIT), dequantised 4-bit, pruned vocabulary (60,000 Chinese and English pieces); never
  the original. It was taught which items stand beside each other in baskets, popularity apart. A tenth of the items
  took no part in that.
- An item vector is the text's, and for items of the catalogue `online_retail` a learned id-vector, of which $id_dropout
  were dropped at random in each step of training.
- Two layers of self-attention read up to 256 events with their kind, age and place. A score is the taste read from all
  of them plus, for each candidate, what its own attention to the events adds: log(1 + sum of exp), the potential of
  softmax attention with an empty slot (Ramsauer et al. 2021). How often the item itself
  was taken counts besides, with a weight chosen on 500 of the users below (without it NDCG@10 is about 0.02 lower).
- For an item of the catalogue that is new to the user, the user's items speak too, by weights in closed form of what
  users took together (EASE, Steck 2019; an item's $neighbours largest), how strongly was chosen on the same 500 users.
  Without them NDCG@10 of new items is 0.0968 and of all 0.2866. `because` holds attention and these parts together.
- Trained with softmax over all items on every basket of a user after the first.$scales$newcomers

## Intended use
Ordering what a shop shows. Not for decisions about people. Only purchases were in the data: other kinds of events count
about as purchases do (NDCG@10 of 400 of the users below 0.293 when all they did is called a view, 0.291 as it is, 0.288
without times), and a disliked item takes away what a liked one would add, which was not measured.

## Training data
| data set | language | licence as stated |
|---|---|---|
| Online Retail, a year of a gift shop in the UK (Chen 2015, UCI) | English | CC-BY-4.0 |

Trained with `heed train recommend` and `models/configs/recommend.toml`, seed $seed, exported with `heed export`.

## Figures
Each user's last basket, predicted from everything before it: ranked among all items, never among samples. The test
baskets were never read; scores are calibrated on these same baskets.

$figures

Reproduce with `$command`; other recommenders beside it, new items and ablations with `make bench-recommend-quality`.

$drift

## Limits
- One shop, one year: many customers are wholesalers, who order the same again.
- The months up to a basket are known from training, as in every split by user; what is popular in another year is not.
- The encoder saw English items only; Chinese texts keep about the vectors of the base.

## Attribution
Online Retail (Daqing Chen, 2015, UCI Machine Learning Repository, CC-BY-4.0), multilingual-e5 (Wang et al. 2024).
""")

SCALES = Template("""
  Then attention was multiplied by $attention, neighbours by $neighbours and how often an item was taken by $often: best
  for the last of these baskets, with a network trained without it.""")
NEWCOMERS = Template("""
- A newcomer, an item that came to the catalogue later, is told $always, $said times what neighbours say for its
  nearest known item by the text and for that one's nearest, and $taken for those of them that the user took: the
  likeliest for each user's last basket of training, without the tenth of the items that the encoder was not taught.""")


def card(manifest: Manifest, measured: MeasuredRecommender, drift: Sequence[str], trained: RecommendRun) -> str:
    histories = trained.config.histories
    scales = histories.scales if histories.choose_scales else None
    worth = None if histories.newcomers is None else asdict(histories.newcomers)
    return TEXT.substitute(
        name=manifest.name,
        version=manifest.version,
        base=manifest.base,
        base_digest=manifest.base_digest,
        id_dropout=f"{histories.id_dropout:.0%}",
        seed=histories.seed,
        neighbours=histories.neighbours.kept,
        scales="" if scales is None else SCALES.substitute(asdict(scales)),
        newcomers="" if worth is None else NEWCOMERS.substitute({name: f"{one:.2f}" for name, one in worth.items()}),
        figures=recommend_table(measured),
        command=COMMAND.format(name=manifest.name),
        drift="\n\n".join(drift),
    )
