"""Rankings of RecTools' SASRec and BERT4Rec, after each of the epochs asked for.

python sequences.py SPLIT.npz SETTING.json FOLDER, where each becomes EPOCHS.npy
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
    """The library's softmax loss, computed only where there is something to predict: the same, in less than half."""

    def training_step(self, batch, batch_idx):
        items = self.torch_model.item_model.get_all_embeddings()
        wanted = batch["y"] != 0
        states = self.torch_model.encode_sessions(batch, items)[wanted]
        return torch.nn.functional.cross_entropy(self.torch_model.similarity_module(states, items), batch["y"][wanted])


def dataset_of(split):
    """Times are the events' places: what was done in one second stays in order."""
    lengths = np.diff(split["offsets"])
    users = np.repeat(np.arange(len(lengths)), lengths)
    places = np.arange(len(users)) - np.repeat(split["offsets"][:-1], lengths)
    columns = {
        Columns.User: users,
        Columns.Item: split["items"],
        Columns.Weight: 1.0,
        Columns.Datetime: pd.Timestamp("2000-01-01") + pd.to_timedelta(places, unit="s"),
    }
    return Dataset.construct(pd.DataFrame(columns))


def rankings(model, dataset, split):
    """Items and users that the library leaves out come after the others, by popularity."""
    total = int(split["item_count"])
    popular = np.argsort(-np.bincount(split["items"], minlength=total), kind="stable")
    found = model.recommend(split["asked"], dataset, total, False, on_unsupported_targets="ignore")
    rows = dict(iter(found.groupby(Columns.User, sort=False)[Columns.Item]))
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
    dataset = dataset_of(split)
    setting["loss"] = "softmax"
    model = kind(deterministic=True, recommend_torch_device="cpu", lightning_module_type=WithoutPadding, **setting)
    for epochs in range(1, checkpoints[-1] + 1):
        model.fit_partial(dataset, 1, 1)
        if epochs in checkpoints:
            with torch.random.fork_rng():  # the epochs after these go on as if nothing had been ranked
                np.save(Path(sys.argv[3]) / f"{epochs}.npy", rankings(model, dataset, split))


if __name__ == "__main__":
    main()
