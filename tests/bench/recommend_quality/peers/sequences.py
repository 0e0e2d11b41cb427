"""Rankings of RecTools' SASRec and BERT4Rec, after each of the requested numbers of epochs.

Usage: python sequences.py SPLIT.npz SETTING.json FOLDER. Writes FOLDER/EPOCHS.npy for each.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel, SASRecModel
from rectools.models.nn.transformers.lightning import TransformerLightningModule

KINDS = {"sasrec": SASRecModel, "bert4rec": BERT4RecModel}


class WithoutPadding(TransformerLightningModule):
    """The library's softmax loss, computed only at positions with a target, in less than half the time."""

    def training_step(self, batch, batch_idx):
        items = self.torch_model.item_model.get_all_embeddings()
        has_target = batch["y"] != 0
        states = self.torch_model.encode_sessions(batch, items)[has_target]
        return torch.nn.functional.cross_entropy(
            self.torch_model.similarity_module(states, items), batch["y"][has_target]
        )


def make_dataset(split):
    """Return the data set. Times are positions of events, so that events of the same second stay in order."""
    lengths = np.diff(split["offsets"])
    users = np.repeat(np.arange(len(lengths)), lengths)
    positions = np.arange(len(users)) - np.repeat(split["offsets"][:-1], lengths)
    columns = {
        Columns.User: users,
        Columns.Item: split["items"],
        Columns.Weight: 1.0,
        Columns.Datetime: pd.Timestamp("2000-01-01") + pd.to_timedelta(positions, unit="s"),
    }
    return Dataset.construct(pd.DataFrame(columns))


def rank_all(model, dataset, split):
    """Return rankings of all items. Items and users that the library leaves out follow by popularity."""
    total = int(split["item_count"])
    popular = np.argsort(-np.bincount(split["items"], minlength=total), kind="stable")
    recommended = model.recommend(split["asked"], dataset, total, False, on_unsupported_targets="ignore")
    rows = dict(iter(recommended.groupby(Columns.User, sort=False)[Columns.Item]))
    order = np.empty((len(split["asked"]), total), np.int32)
    for row, user in zip(order, split["asked"], strict=True):
        known = rows[user].to_numpy() if user in rows else popular[:0]
        row[:] = np.concatenate([known, popular[~np.isin(popular, known)]])
    return order


def main():
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    split = np.load(sys.argv[1])
    setting = json.loads(Path(sys.argv[2]).read_text())
    kind, checkpoints = KINDS[setting.pop("method")], sorted(setting.pop("epochs"))
    seed_everything(0, verbose=False)
    dataset = make_dataset(split)
    setting["loss"] = "softmax"
    model = kind(deterministic=True, recommend_torch_device="cpu", lightning_module_type=WithoutPadding, **setting)
    for epochs in range(1, checkpoints[-1] + 1):
        model.fit_partial(dataset, 1, 1)
        if epochs in checkpoints:
            with torch.random.fork_rng():  # ranking must not change the later epochs
                np.save(Path(sys.argv[3]) / f"{epochs}.npy", rank_all(model, dataset, split))


if __name__ == "__main__":
    main()
