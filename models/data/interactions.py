"""Users' interactions with the items of a catalogue: the readers of public data sets, and their splits.

A basket holds the items that a user took together: the items of an invoice, or a single rating. The target is always a
user's last basket. It is predicted from everything before it. This module knows no models and needs numpy only.
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
"""The path of its files in RecBole's wheel, without their extensions."""

DAY_S = 86_400

Items = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class InteractionSequence:
    """A user's events, oldest first, (events,) each.

    `items` are item indices, `times` are seconds since 1970 and `values` are ratings, NaN without a rating. `baskets`
    are the indices of the baskets, from 0. An item is in a basket once.
    """

    items: Items
    times: NDArray[np.float64]
    values: NDArray[np.float32]
    baskets: Items

    def __len__(self) -> int:
        return len(self.items)

    def select(self, mask: NDArray[np.bool_]) -> InteractionSequence:
        """Return the events of the mask (events,), with their baskets renumbered from 0."""
        _, baskets = np.unique(self.baskets[mask], return_inverse=True)
        return InteractionSequence(self.items[mask], self.times[mask], self.values[mask], baskets.astype(np.int64))

    def each_basket(self) -> list[Items]:
        """Return the items of each basket, oldest first."""
        return np.split(self.items, np.flatnonzero(np.diff(self.baskets)) + 1) if len(self) else []


@dataclass(frozen=True, slots=True)
class Interactions:
    """The events of all users. Every event is of one `kind`.

    Item indices refer to `ids` and `texts`. Each user has at least one event.
    """

    kind: str
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    users: Mapping[str, InteractionSequence]


@dataclass(frozen=True, slots=True)
class Split:
    """A split into training interactions and targets.

    Each of `users` has a history in `training` and the distinct items of the next basket in `targets`. `training` also
    has the complete interactions of users without a target.
    """

    training: Interactions
    users: tuple[str, ...]
    targets: tuple[Items, ...]

    @property
    def histories(self) -> tuple[InteractionSequence, ...]:
        return tuple(self.training.users[user] for user in self.users)

    @property
    def owned(self) -> tuple[Items, ...]:
        """The distinct items of each user's history."""
        return tuple(np.unique(history.items) for history in self.histories)

    def select_users(self, mask: Sequence[bool] | NDArray[np.bool_], targets: Sequence[Items] | None = None) -> Split:
        """Return the split of the masked users. `targets`, those of all users, replace the split's if they are set."""
        rows = zip(self.users, self.targets if targets is None else targets, mask, strict=True)
        selected = [(user, target) for user, target, keep in rows if keep]
        return replace(self, users=tuple(user for user, _ in selected), targets=tuple(target for _, target in selected))

    def repeat_targets(self) -> Split:
        """Return only the targets that the user had before, and the users who have any."""
        return self._filter_targets(owned=True)

    def novel_targets(self) -> Split:
        """Return only the targets that the user never had, and the users who have any."""
        return self._filter_targets(owned=False)

    def _filter_targets(self, owned: bool) -> Split:
        targets = [
            target[np.isin(target, history) == owned] for target, history in zip(self.targets, self.owned, strict=True)
        ]
        return self.select_users([len(target) > 0 for target in targets], targets)


def hold_out_last(interactions: Interactions) -> Split:
    """Hold out the last basket of every user with at least two baskets.

    Applied to a split's `training`, it returns the split for tuning.
    """
    users, held_out = {}, []
    for user, sequence in interactions.users.items():
        last = sequence.baskets == sequence.baskets[-1]
        if last.all():
            users[user] = sequence
        else:
            users[user] = sequence.select(~last)
            held_out.append((user, sequence.items[last]))
    names, targets = tuple(user for user, _ in held_out), tuple(target for _, target in held_out)
    return Split(replace(interactions, users=users), names, targets)


def remove_items(split: Split, removed: Items) -> Split:
    """Return the split in which these items are cold: they are in no history, and they are the only targets.

    Users remain if a target is one of the items and their history is not empty.
    """
    users = {
        user: sequence.select(~np.isin(sequence.items, removed)) for user, sequence in split.training.users.items()
    }
    users = {user: sequence for user, sequence in users.items() if len(sequence)}
    targets = [target[np.isin(target, removed)] for target in split.targets]
    mask = [len(target) > 0 and user in users for user, target in zip(split.users, targets, strict=True)]
    selected = split.select_users(mask, targets)
    return replace(selected, training=replace(split.training, users=users))


def draw_removed_items(items: int, share: float, seed: int) -> Items:
    """Draw a share of `items` item indices, and return them in ascending order."""
    return np.sort(np.random.default_rng(seed).permutation(items)[: int(share * items)])


def read_online_retail(folder: Path) -> Interactions:
    """Return the purchases of Online Retail. The items of an invoice are a basket (Chen 2015)."""
    with gzip.open(folder / "items.jsonl.gz", "rt", encoding="utf-8") as file:
        items = [json.loads(line) for line in file]
    index_by_id = {item["item_id"]: index for index, item in enumerate(items)}
    baskets: dict[str, dict[str, tuple[float, dict[int, float]]]] = defaultdict(dict)
    with gzip.open(folder / "interactions.csv.gz", "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["item_id"] not in index_by_id:
                raise ValueError(f"{file.name}: the item {row['item_id']!r} is not in items.jsonl.gz")
            time = datetime.fromisoformat(row["timestamp"]).replace(tzinfo=UTC).timestamp()
            basket = baskets[row["user_id"]].setdefault(row["invoice"], (time, {}))
            basket[1][index_by_id[row["item_id"]]] = np.nan
    users = {user: make_sequence(invoices.values()) for user, invoices in baskets.items()}
    return Interactions("purchase", tuple(index_by_id), tuple(item["text"] for item in items), users)


def read_movielens(wheel: Path) -> Interactions:
    """Return MovieLens-100k, ratings from 1 to 5, from RecBole's wheel or the folder where it is unpacked.

    Many ratings have the same second, and these stay in the file's order. The data are for comparison only, because
    their terms forbid redistribution.
    """
    titles = {}
    for row in read_recbole_table(wheel, "item"):
        titles[row["item_id"]] = f"{row['movie_title']} ({row['release_year']}): {row['class']}"
    index_by_id = {item: index for index, item in enumerate(titles)}
    ratings: dict[str, list[tuple[float, dict[int, float]]]] = defaultdict(list)
    for row in read_recbole_table(wheel, "inter"):
        rating = {index_by_id[row["item_id"]]: float(row["rating"])}
        ratings[row["user_id"]].append((float(row["timestamp"]), rating))
    users = {user: make_sequence(baskets) for user, baskets in ratings.items()}
    return Interactions("rating", tuple(index_by_id), tuple(titles.values()), users)


def read_recbole_table(wheel: Path, extension: str) -> Iterable[dict[str, str]]:
    """Return the rows of a file in RecBole's format: columns separated by tabs, and a heading of `name:type`."""
    name = f"{MOVIELENS}.{extension}"
    if wheel.is_dir():
        text = (wheel / name).read_text(encoding="utf-8")
    else:
        with zipfile.ZipFile(wheel) as archive:
            text = archive.read(name).decode()
    heading, *rows = csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    names = [name.partition(":")[0] for name in heading]
    return (dict(zip(names, row, strict=True)) for row in rows)


def make_sequence(baskets: Iterable[tuple[float, Mapping[int, float]]]) -> InteractionSequence:
    """Return the events of baskets, sorted by time. Each basket is its time and the value of every item.

    Baskets of the same time stay in order.
    """
    rows = [
        (item, time, value, index)
        for index, (time, values) in enumerate(sorted(baskets, key=lambda basket: basket[0]))
        for item, value in values.items()
    ]
    items, times, ratings, indices = zip(*rows, strict=True)
    return InteractionSequence(
        np.asarray(items, np.int64),
        np.asarray(times, np.float64),
        np.asarray(ratings, np.float32),
        np.asarray(indices, np.int64),
    )


def load_held_out(data: Path) -> Split:
    """Return the split of Online Retail."""
    return hold_out_last(read_online_retail(data / RETAIL))
