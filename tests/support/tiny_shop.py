"""A tiny shop for the training of a recommender: items, purchases and anchor texts."""

from __future__ import annotations

import csv
import gzip
import json
import random
from pathlib import Path

FAMILIES = ("cup", "hat", "pen", "bag")
COLOURS = tuple("abcdefgh")


def write_shop(folder: Path) -> Path:
    """Write the interactions of 80 users into the folder, and return it.

    Each user stays with a family of items and repeats an item of the last basket.
    """
    data = folder / "online_retail"
    data.mkdir()
    items = [f"{colour} {family}" for family in FAMILIES for colour in COLOURS]
    with gzip.open(data / "items.jsonl.gz", "wt", encoding="utf-8") as file:
        rows = ({"item_id": f"i{n}", "text": text, "median_price": n + 0.5} for n, text in enumerate(items))
        file.writelines(json.dumps(row) + "\n" for row in rows)
    rng = random.Random(1)
    with gzip.open(data / "interactions.csv.gz", "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "timestamp", "invoice", "quantity"])
        for user in range(80):
            family, again = user % len(FAMILIES), rng.randrange(len(COLOURS))
            for day in range(1, 5):
                basket = {again, *rng.sample(range(len(COLOURS)), 2)}
                again = min(basket)
                for colour in sorted(basket):
                    item = f"i{family * len(COLOURS) + colour}"
                    writer.writerow([user, item, f"2011-03-{day:02d} 10:00:00", f"{user}-{day}", 1])
    with gzip.open(folder / "zh.txt.gz", "wt", encoding="utf-8") as file:
        file.writelines(f"手机质量好{word}\n" for word in "一二三四五六")
    return folder
