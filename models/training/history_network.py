"""Teaching the history network what users take next, from baskets, with softmax over all items.

An example is a user's events up to a basket, and the basket. Halves of single baskets, each to be told from the
other, are more of them. Id-vectors are dropped at random, so that the network also scores an item that it knows by its
text alone. How much it counts how often an item was taken is chosen: learned with the rest, it is too little for the
first ten, because the loss is that of whole baskets. That and what neighbours say are added after training, or, with
`residual`, stand in the scores from the first step, so that the network learns what they leave to be told. Knows torch;
nothing of bundles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.data.interactions import DAY_S, Interactions, InteractionSequence, Split
from models.networks.recommender import (
    AS_TRAINED,
    NEVER,
    HistoryBatch,
    HistoryNetwork,
    ScoreWeights,
    Shape,
    between,
    near,
)
from models.prediction.normalize import l2_normalize
from models.ranking.cold_start import ColdStart, ColdStartWeights, encode_cold_index, find_nearest_items
from models.ranking.events import MAX_EVENTS, age_bucket, event_types, position_bucket
from models.ranking.item_neighbours import ItemNeighbours
from models.training.item_neighbours import NeighbourConfig, fit_item_neighbours

LENGTH_NOISE = 8
"""Events by which a history's length is blurred when near lengths are put together, so that batches differ."""

FOLDS = 5
"""Of users: with `residual`, what neighbours say in a user's history is found without the users of their fold, because
of those whom weights were fitted to they tell more than of anybody new."""

Items = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryConfig:
    """`models/configs/recommend.toml` explains each field."""

    seed: int
    epochs: int
    batch_examples: int
    events: int
    rate: float
    weight_decay: float
    dropout: float
    id_dropout: float
    halves: float
    steps_of_user: int
    often: float
    neighbours: NeighbourConfig
    residual: bool = False
    horizon: int = 1
    choose_scales: bool = False
    scales: ScoreWeights = AS_TRAINED
    find_newcomers: bool = False
    newcomers: ColdStartWeights | None = None
    use_text: bool = True
    use_ids: bool = True
    use_time: bool = True
    use_candidates: bool = True
    inner: int = 128
    layers: int = 2
    heads: int = 4
    eyes: int = 2
    eye: int = 32


@dataclass(frozen=True, slots=True)
class HistoryInput:
    """Events oldest first, as numbers of `models.ranking.events`, all (events,)."""

    items: Items
    kinds: Items
    ages: Items
    places: Items


@dataclass(frozen=True, slots=True)
class NextBasketExample:
    """`targets` are the distinct items to be told from `past`, that of a user of the `fold`."""

    past: HistoryInput
    targets: Items
    fold: int


def history_input(trail: InteractionSequence, kind: str, events: int, use_time: bool = True) -> HistoryInput:
    """The newest `events` of a trail."""
    items, times = trail.items[-events:], trail.times[-events:]
    days = (times[-1] - times) / DAY_S
    ages = age_bucket(days if use_time else np.full(len(items), np.nan))
    return HistoryInput(items, event_types(kind, trail.values[-events:]), ages, position_bucket(len(items)))


def batch_of(pasts: Sequence[HistoryInput], device: torch.device) -> HistoryBatch:
    """Padded at the end to the longest."""
    longest = max(len(past.items) for past in pasts)

    def padded(name: str, filling: int) -> Tensor:
        found = np.full((len(pasts), longest), filling, np.int64)
        for row, past in enumerate(pasts):
            values = getattr(past, name)
            found[row, : len(values)] = values
        return torch.from_numpy(found).to(device)

    return HistoryBatch(padded("items", -1), padded("kinds", 0), padded("ages", 0), padded("places", 0))


def next_basket_examples(
    interactions: Interactions, config: HistoryConfig, chance: np.random.Generator
) -> list[NextBasketExample]:
    """Of one epoch: some baskets of every user after their first, drawn anew, and halves of baskets."""
    found: list[NextBasketExample] = []
    halves: list[tuple[Items, int]] = []
    for number, trail in enumerate(interactions.users.values()):
        starts = np.flatnonzero(np.diff(trail.baskets, prepend=-1))
        for step in chance.permutation(np.arange(1, len(starts)))[: config.steps_of_user]:
            past = history_input(trail.take(trail.baskets < step), interactions.kind, config.events, config.use_time)
            ahead = (trail.baskets >= step) & (trail.baskets < step + config.horizon)
            found.append(NextBasketExample(past, np.unique(trail.items[ahead]), number % FOLDS))
        halves += [(basket, number % FOLDS) for basket in trail.each_basket() if len(basket) >= 4]
    for place in chance.choice(len(halves), int(config.halves * len(halves)), replace=False):
        basket, fold = halves[place]
        mixed = chance.permutation(basket)
        cut = int(chance.integers(1, len(mixed)))
        trail = InteractionSequence(
            mixed[:cut], np.zeros(cut), np.full(cut, np.nan, np.float32), np.zeros(cut, np.int64)
        )
        found.append(
            NextBasketExample(
                history_input(trail, interactions.kind, config.events, config.use_time), mixed[cut:], fold
            )
        )
    return found


def train_history_network(
    interactions: Interactions, texts: NDArray[np.float32], config: HistoryConfig, say: Callable[[str], None]
) -> HistoryNetwork:
    """Trained on all of `interactions`; `texts` (items, width) are the encoder's vectors of its items, centred.

    Items that nobody has anything to do with in it are neither predicted nor known by their id.
    """
    torch.manual_seed(config.seed)
    chance = np.random.default_rng(config.seed)
    shape = Shape(texts.shape[1], config.inner, config.layers, config.heads, config.eyes, config.eye)
    network = HistoryNetwork(shape, len(texts), config.dropout)
    read = torch.from_numpy(texts if config.use_text else np.zeros_like(texts))
    taken = torch.zeros(len(texts))
    taken[np.unique(np.concatenate([trail.items for trail in interactions.users.values()]))] = 1
    network.known.copy_(taken * config.use_ids)
    if not config.use_candidates:
        network.eyes.requires_grad_(False).zero_()
    optimizer = optimizer_of(network, config)
    epochs = [next_basket_examples(interactions, config, chance) for _ in range(config.epochs)]
    batches = [batch for epoch in epochs for batch in batches_of(epoch, config.batch_examples, chance)]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, 1.0, max(0.02, (len(batches) - step) / (0.7 * len(batches))))
    )
    speaking = config.use_ids and config.neighbours.weight != 0
    apart = fit_neighbours_by_fold(interactions, config.neighbours) if config.residual and speaking else []
    if config.residual:
        network.often.fill_(config.often * config.use_candidates)
    network.train()
    for step, batch in enumerate(batches):
        kept = network.known * (torch.rand(len(texts)) >= config.id_dropout)
        vectors = network.item_vectors(read, kept)
        histories = batch_of([one.past for one in batch], read.device)
        scores = network(histories, vectors) + (1 - taken) * NEVER
        if apart:
            scores = scores + near_apart(histories.items, [one.fold for one in batch], apart, config.neighbours.fade)
        loss = next_loss(scores, [one.targets for one in batch])
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0:
            say(f"step {step} of {len(batches)} loss {loss.item():.3f}")
    network.often.fill_(config.often * config.use_candidates)
    if speaking:
        network.set_neighbours(fit_item_neighbours(list(interactions.users.values()), len(texts), config.neighbours))
    network.scale_components(config.scales)
    if config.newcomers is not None:
        network.set_cold_start(
            ColdStart(config.newcomers, find_nearest_items(l2_normalize(texts), taken.numpy().astype(bool)))
        )
    return network.eval()


def fit_neighbours_by_fold(interactions: Interactions, schedule: NeighbourConfig) -> list[Tensor]:
    """Of each fold, what each item says of each by the users of the others, (items, items)."""
    found = []
    for fold in range(FOLDS):
        others = [trail for number, trail in enumerate(interactions.users.values()) if number % FOLDS != fold]
        heard = fit_item_neighbours(others, len(interactions.ids), schedule)
        found.append(between(torch.from_numpy(heard.indices), torch.from_numpy(heard.weights)))
    return found


def near_apart(items: Tensor, folds: Sequence[int], apart: Sequence[Tensor], fade: float) -> Tensor:
    """`near` of each history by what is said in its own fold, (batch, items); items (batch, events)."""
    found = torch.zeros(len(items), len(apart[0]))
    for fold in set(folds):
        rows = torch.tensor([row for row, own in enumerate(folds) if own == fold])
        found[rows] = near(items[rows], apart[fold], torch.tensor([fade]))
    return found


def next_loss(scores: Tensor, targets: Sequence[Items]) -> Tensor:
    """Cross-entropy of the softmax over all items with the targets, each a like part; scores (batch, items)."""
    wanted = torch.zeros_like(scores)
    for row, own in enumerate(targets):
        wanted[row, torch.from_numpy(own)] = 1 / len(own)
    return -(wanted * scores.log_softmax(dim=-1)).sum(dim=-1).mean()


def optimizer_of(network: HistoryNetwork, config: HistoryConfig) -> torch.optim.Optimizer:
    """Weight decay on matrices alone."""
    matrices = [one for name, one in network.named_parameters() if one.ndim > 1 and name != "again"]
    others = [one for name, one in network.named_parameters() if one.ndim == 1 or name == "again"]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.rate, fused=True)


def batches_of(
    rows: Sequence[NextBasketExample], size: int, chance: np.random.Generator
) -> list[list[NextBasketExample]]:
    """Near lengths together, in random order."""
    blurred = np.asarray([len(row.past.items) for row in rows]) + chance.random(len(rows)) * LENGTH_NOISE
    order = np.argsort(blurred)
    batches = [[rows[place] for place in order[start : start + size]] for start in range(0, len(rows), size)]
    return [batches[place] for place in chance.permutation(len(batches))]


def scores_of(
    network: HistoryNetwork, texts: NDArray[np.float32], split: Split, config: HistoryConfig
) -> NDArray[np.float32]:
    """Scores (users, items) of all items for each asked user of the split, as if none were a newcomer."""
    pasts = [history_input(trail, split.training.kind, MAX_EVENTS, config.use_time) for trail in split.histories]
    order = sorted(range(len(pasts)), key=lambda place: len(pasts[place].items))
    found = np.empty((len(pasts), len(texts)), np.float32)
    with torch.inference_mode():
        vectors = network.item_vectors(
            torch.from_numpy(texts if config.use_text else np.zeros_like(texts)), network.known
        )
        for start in range(0, len(order), 16):
            part = order[start : start + 16]
            found[part] = network(batch_of([pasts[place] for place in part], vectors.device), vectors).numpy()
    return found


def cold_start_scores(
    network: HistoryNetwork, split: Split, new: Items, worth: ColdStartWeights | None = None
) -> NDArray[np.float32]:
    """What the items `new` are told after each asked user's history, by the network or `worth`; (users, new)."""
    always, said, taken = network.newcomers.tolist()
    kin = network.kin.numpy()
    newcomers = ColdStart(worth or ColdStartWeights(bias=always, neighbours=said, taken=taken), kin)
    heard = ItemNeighbours(network.neighbours.numpy(), network.nearness.numpy(), float(network.fade), newcomers)
    numbers = encode_cold_index(kin[new, 0].astype(np.int64))
    histories = [trail.items[-MAX_EVENTS:] for trail in split.histories]
    return np.stack([heard.scores(items, np.ones(len(items), np.bool_))[numbers] for items in histories])
