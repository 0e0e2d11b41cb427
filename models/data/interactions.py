"""What users did with the items of a catalogue: reading public data sets, and splitting off what comes next.

A basket is what a user did at once: the items of one invoice, or one rating. What is predicted is always a user's last
basket, from everything before it. Knows nothing of models; needs numpy only.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RETAIL = "online_retail"
MOVIELENS = "recbole/dataset_example/ml-100k/ml-100k"
"""Where RecBole's wheel has it, less the endings of its files."""

DAY_S = 86_400

Items = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class InteractionSequence:
    """One user's events, oldest first, (events,) each: item numbers, times in seconds since 1970, ratings (nan where
    there is none) and the number of the basket, from 0. An item is in a basket once."""

    items: Items
    times: NDArray[np.float64]
    values: NDArray[np.float32]
    baskets: Items

    def __len__(self) -> int:
        return len(self.items)

    def take(self, chosen: NDArray[np.bool_]) -> InteractionSequence:
        _, baskets = np.unique(self.baskets[chosen], return_inverse=True)
        return InteractionSequence(
            self.items[chosen], self.times[chosen], self.values[chosen], baskets.astype(np.int64)
        )

    def each_basket(self) -> list[Items]:
        """The items of each basket, oldest first."""
        return np.split(self.items, np.flatnonzero(np.diff(self.baskets)) + 1) if len(self) else []


@dataclass(frozen=True, slots=True)
class Interactions:
    """`kind` is what every event is. Item numbers count `ids` and `texts`; a user has at least one event."""

    kind: str
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    users: Mapping[str, InteractionSequence]


@dataclass(frozen=True, slots=True)
class Split:
    """`users` are those asked, each with a history in `training`; `targets` are the distinct items of what came next.

    `training` has users who are not asked, too, with all they did.
    """

    training: Interactions
    users: tuple[str, ...]
    targets: tuple[Items, ...]

    @property
    def histories(self) -> tuple[InteractionSequence, ...]:
        return tuple(self.training.users[user] for user in self.users)

    @property
    def owned(self) -> tuple[Items, ...]:
        """Distinct items of each asked user's history."""
        return tuple(np.unique(trail.items) for trail in self.histories)

    def where(self, kept: Sequence[bool] | NDArray[np.bool_], targets: Sequence[Items] | None = None) -> Split:
        """Asks only the kept users, `targets` (of all users) instead of the split's own where given."""
        every = zip(self.users, self.targets if targets is None else targets, kept, strict=True)
        chosen = [(user, target) for user, target, keep in every if keep]
        return replace(self, users=tuple(user for user, _ in chosen), targets=tuple(target for _, target in chosen))

    def repeat_targets(self) -> Split:
        """Only the targets that the user had before, and the users who have such."""
        return self._among(True)

    def novel_targets(self) -> Split:
        """Only the targets that the user never had, and the users who have such."""
        return self._among(False)

    def _among(self, had: bool) -> Split:
        targets = [own[np.isin(own, before) == had] for own, before in zip(self.targets, self.owned, strict=True)]
        return self.where([len(own) > 0 for own in targets], targets)


def hold_out_last(interactions: Interactions) -> Split:
    """Asks every user with two baskets or more for the last. On a split's `training` it gives the one to tune on."""
    users, asked = {}, []
    for user, trail in interactions.users.items():
        last = trail.baskets == trail.baskets[-1]
        if last.all():
            users[user] = trail
        else:
            users[user] = trail.take(~last)
            asked.append((user, trail.items[last]))
    names, targets = tuple(user for user, _ in asked), tuple(target for _, target in asked)
    return Split(replace(interactions, users=users), names, targets)


def remove_items(split: Split, removed: Items) -> Split:
    """As if these items had come after all of `training`: the split that asks for them.

    No history has them; asked are the users whose target has one and who still have a history.
    """
    users = {user: trail.take(~np.isin(trail.items, removed)) for user, trail in split.training.users.items()}
    users = {user: trail for user, trail in users.items() if len(trail)}
    targets = [own[np.isin(own, removed)] for own in split.targets]
    kept = [len(own) > 0 and user in users for user, own in zip(split.users, targets, strict=True)]
    asked = split.where(kept, targets)
    return replace(asked, training=replace(split.training, users=users))


def draw_removed_items(items: int, share: float, seed: int) -> Items:
    """The numbers of a share of so many items, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(items)[: int(share * items)])


def read_online_retail(folder: Path) -> Interactions:
    """Purchases; the items of one invoice are a basket (Chen 2015)."""
    with gzip.open(folder / "items.jsonl.gz", "rt", encoding="utf-8") as file:
        items = [json.loads(line) for line in file]
    number = {item["item_id"]: place for place, item in enumerate(items)}
    baskets: dict[str, dict[str, tuple[float, dict[int, float]]]] = defaultdict(dict)
    with gzip.open(folder / "interactions.csv.gz", "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["item_id"] not in number:
                raise ValueError(f"{file.name}: the item {row['item_id']!r} is not in items.jsonl.gz")
            at = datetime.fromisoformat(row["timestamp"]).replace(tzinfo=UTC).timestamp()
            basket = baskets[row["user_id"]].setdefault(row["invoice"], (at, {}))
            basket[1][number[row["item_id"]]] = np.nan
    users = {user: sequence_of(found.values()) for user, found in baskets.items()}
    return Interactions("purchase", tuple(number), tuple(item["text"] for item in items), users)


def read_movielens(wheel: Path) -> Interactions:
    """MovieLens-100k from RecBole's wheel, or from a folder where that is unpacked or installed: ratings 1 to 5.

    Ratings of one second, which are many, stay in the file's order. For comparison only: its terms forbid passing on.
    """
    titles = {}
    for row in tabular(wheel, "item"):
        titles[row["item_id"]] = f"{row['movie_title']} ({row['release_year']}): {row['class']}"
    number = {item: place for place, item in enumerate(titles)}
    ratings: dict[str, list[tuple[float, dict[int, float]]]] = defaultdict(list)
    for row in tabular(wheel, "inter"):
        ratings[row["user_id"]].append((float(row["timestamp"]), {number[row["item_id"]]: float(row["rating"])}))
    users = {user: sequence_of(found) for user, found in ratings.items()}
    return Interactions("rating", tuple(number), tuple(titles.values()), users)


def tabular(wheel: Path, ending: str) -> Iterable[dict[str, str]]:
    """Rows of a file of RecBole's form: tabs between, and each name in the heading followed by a colon and its type."""
    name = f"{MOVIELENS}.{ending}"
    if wheel.is_dir():
        text = (wheel / name).read_text(encoding="utf-8")
    else:
        with zipfile.ZipFile(wheel) as archive:
            text = archive.read(name).decode()
    heading, *rows = csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    names = [name.partition(":")[0] for name in heading]
    return (dict(zip(names, row, strict=True)) for row in rows)


def sequence_of(baskets: Iterable[tuple[float, Mapping[int, float]]]) -> InteractionSequence:
    """Of baskets in any order, each its time and the value of every item; those of one time stay in order."""
    rows = [
        (item, at, value, basket)
        for basket, (at, found) in enumerate(sorted(baskets, key=lambda one: one[0]))
        for item, value in found.items()
    ]
    items, times, values, numbers = zip(*rows, strict=True)
    return InteractionSequence(
        np.asarray(items, np.int64),
        np.asarray(times, np.float64),
        np.asarray(values, np.float32),
        np.asarray(numbers, np.int64),
    )


def load_held_out(data: Path) -> Split:
    """The split of Online Retail."""
    return hold_out_last(read_online_retail(data / RETAIL))
