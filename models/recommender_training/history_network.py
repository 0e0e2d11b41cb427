"""Training of the history network on users' next baskets, with the softmax over all items.

An example is a basket and the user's events before it. Single baskets are also cut in two, and each half predicts the
other. ID embeddings are dropped at random, so that the network can also score an item by its text alone.

The weight of how often an item was taken is chosen rather than learned. Learned, it is too small for the first ten
items, because the loss is that of whole baskets. This component and the neighbours are added after training. With
`residual` they are in the scores from the first step, so that the network learns only the rest. This module knows torch
and no bundles.
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
    MASKED_SCORE,
    HistoryBatch,
    HistoryNetwork,
    HistoryShape,
    ScoreWeights,
    dense_neighbour_weights,
    score_neighbours,
)
from models.prediction.normalize import l2_normalize
from models.ranking.cold_start import ColdStart, ColdStartWeights, encode_cold_index, find_nearest_items
from models.ranking.events import MAX_EVENTS, age_bucket, event_types, position_bucket
from models.ranking.item_neighbours import ItemNeighbours
from models.recommender_training.item_neighbours import NeighbourConfig, fit_item_neighbours

LENGTH_NOISE = 8
"""Random events added to a history's length when histories are grouped by length, so that batches differ."""

FOLDS = 5
"""Folds of the users.

With `residual`, the neighbour weights for a user are fitted without the users of the same fold. Weights fit the users
that they were fitted on better than new users.
"""

Items = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryConfig:
    """The settings of the history network. `models/configs/recommend.toml` explains each field."""

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
    """Events of a user, oldest first, as the buckets of `models.ranking.events`, all (events,)."""

    items: Items
    event_types: Items
    ages: Items
    positions: Items


@dataclass(frozen=True, slots=True)
class NextBasketExample:
    """A training example. `targets` are the distinct items after `history`, of a user of the `fold`."""

    history: HistoryInput
    targets: Items
    fold: int


def make_history_input(sequence: InteractionSequence, kind: str, events: int, use_time: bool = True) -> HistoryInput:
    """Return the newest `events` of a sequence."""
    items, times = sequence.items[-events:], sequence.times[-events:]
    days = (times[-1] - times) / DAY_S
    ages = age_bucket(days if use_time else np.full(len(items), np.nan))
    return HistoryInput(items, event_types(kind, sequence.values[-events:]), ages, position_bucket(len(items)))


def collate_histories(histories: Sequence[HistoryInput], device: torch.device) -> HistoryBatch:
    """Return the histories as a batch, padded at the end to the longest."""
    longest = max(len(history.items) for history in histories)

    def pad(name: str, padding: int) -> Tensor:
        padded = np.full((len(histories), longest), padding, np.int64)
        for row, history in enumerate(histories):
            values = getattr(history, name)
            padded[row, : len(values)] = values
        return torch.from_numpy(padded).to(device)

    return HistoryBatch(pad("items", -1), pad("event_types", 0), pad("ages", 0), pad("positions", 0))


def draw_next_basket_examples(
    interactions: Interactions, config: HistoryConfig, rng: np.random.Generator
) -> list[NextBasketExample]:
    """Draw the examples of an epoch: some baskets of every user after the first, and halves of baskets."""
    examples: list[NextBasketExample] = []
    divisible: list[tuple[Items, int]] = []
    for index, sequence in enumerate(interactions.users.values()):
        starts = np.flatnonzero(np.diff(sequence.baskets, prepend=-1))
        for step in rng.permutation(np.arange(1, len(starts)))[: config.steps_of_user]:
            past = sequence.select(sequence.baskets < step)
            history = make_history_input(past, interactions.kind, config.events, config.use_time)
            ahead = (sequence.baskets >= step) & (sequence.baskets < step + config.horizon)
            examples.append(NextBasketExample(history, np.unique(sequence.items[ahead]), index % FOLDS))
        divisible += [(basket, index % FOLDS) for basket in sequence.each_basket() if len(basket) >= 4]
    for choice in rng.choice(len(divisible), int(config.halves * len(divisible)), replace=False):
        basket, fold = divisible[choice]
        shuffled = rng.permutation(basket)
        cut = int(rng.integers(1, len(shuffled)))
        half = InteractionSequence(
            shuffled[:cut], np.zeros(cut), np.full(cut, np.nan, np.float32), np.zeros(cut, np.int64)
        )
        history = make_history_input(half, interactions.kind, config.events, config.use_time)
        examples.append(NextBasketExample(history, shuffled[cut:], fold))
    return examples


def train_history_network(
    interactions: Interactions, texts: NDArray[np.float32], config: HistoryConfig, log: Callable[[str], None]
) -> HistoryNetwork:
    """Train a network on all of `interactions`; `texts` (items, width) are the centred vectors of the items' texts.

    Items without interactions are neither predicted nor known by their ID.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    shape = HistoryShape(texts.shape[1], config.inner, config.layers, config.heads, config.eyes, config.eye)
    network = HistoryNetwork(shape, len(texts), config.dropout)
    text_vectors = torch.from_numpy(texts if config.use_text else np.zeros_like(texts))
    taken = torch.zeros(len(texts))
    taken[np.unique(np.concatenate([sequence.items for sequence in interactions.users.values()]))] = 1
    network.known.copy_(taken * config.use_ids)
    if not config.use_candidates:
        network.eyes.requires_grad_(False).zero_()
    optimizer = make_optimizer(network, config)
    epochs = [draw_next_basket_examples(interactions, config, rng) for _ in range(config.epochs)]
    batches = [batch for epoch in epochs for batch in batch_by_history_length(epoch, config.batch_examples, rng)]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, 1.0, max(0.02, (len(batches) - step) / (0.7 * len(batches))))
    )
    use_neighbours = config.use_ids and config.neighbours.weight != 0
    fold_weights = fit_neighbours_by_fold(interactions, config.neighbours) if config.residual and use_neighbours else []
    if config.residual:
        network.often.fill_(config.often * config.use_candidates)
    network.train()
    for step, batch in enumerate(batches):
        known = network.known * (torch.rand(len(texts)) >= config.id_dropout)
        vectors = network.item_vectors(text_vectors, known)
        histories = collate_histories([example.history for example in batch], text_vectors.device)
        scores = network(histories, vectors) + (1 - taken) * MASKED_SCORE
        if fold_weights:
            folds = [example.fold for example in batch]
            decay = config.neighbours.recency_decay
            scores = scores + score_neighbours_by_fold(histories.items, folds, fold_weights, decay)
        loss = next_basket_loss(scores, [example.targets for example in batch])
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0:
            log(f"step {step} of {len(batches)} loss {loss.item():.3f}")
    network.often.fill_(config.often * config.use_candidates)
    if use_neighbours:
        network.set_neighbours(fit_item_neighbours(list(interactions.users.values()), len(texts), config.neighbours))
    network.scale_components(config.scales)
    if config.newcomers is not None:
        nearest_items = find_nearest_items(l2_normalize(texts), taken.numpy().astype(bool))
        network.set_cold_start(ColdStart(config.newcomers, nearest_items))
    return network.eval()


def fit_neighbours_by_fold(interactions: Interactions, config: NeighbourConfig) -> list[Tensor]:
    """Return the neighbour weights (items, items) for each fold, fitted on the users outside the fold."""
    fold_weights = []
    for fold in range(FOLDS):
        training = [user for index, user in enumerate(interactions.users.values()) if index % FOLDS != fold]
        neighbours = fit_item_neighbours(training, len(interactions.ids), config)
        weights = dense_neighbour_weights(torch.from_numpy(neighbours.indices), torch.from_numpy(neighbours.weights))
        fold_weights.append(weights)
    return fold_weights


def score_neighbours_by_fold(
    items: Tensor, folds: Sequence[int], fold_weights: Sequence[Tensor], decay: float
) -> Tensor:
    """Return `score_neighbours` (batch, items) of each history by its fold's weights; items (batch, events)."""
    scores = torch.zeros(len(items), len(fold_weights[0]))
    for fold in set(folds):
        rows = torch.tensor([row for row, row_fold in enumerate(folds) if row_fold == fold])
        scores[rows] = score_neighbours(items[rows], fold_weights[fold], torch.tensor([decay]))
    return scores


def next_basket_loss(scores: Tensor, targets: Sequence[Items]) -> Tensor:
    """Return the cross-entropy of the softmax over all items; scores (batch, items). Targets have equal shares."""
    shares = torch.zeros_like(scores)
    for row, items in enumerate(targets):
        shares[row, torch.from_numpy(items)] = 1 / len(items)
    return -(shares * scores.log_softmax(dim=-1)).sum(dim=-1).mean()


def make_optimizer(network: HistoryNetwork, config: HistoryConfig) -> torch.optim.Optimizer:
    """Return an optimiser with weight decay on matrices alone."""
    parameters = list(network.named_parameters())
    decayed = [parameter for name, parameter in parameters if parameter.ndim > 1 and name != "again"]
    undecayed = [parameter for name, parameter in parameters if parameter.ndim == 1 or name == "again"]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.rate, fused=True)


def batch_by_history_length(
    examples: Sequence[NextBasketExample], size: int, rng: np.random.Generator
) -> list[list[NextBasketExample]]:
    """Return batches of similar history lengths, in random order."""
    lengths = (
        np.asarray([len(example.history.items) for example in examples]) + rng.random(len(examples)) * LENGTH_NOISE
    )
    order = np.argsort(lengths)
    batches = [[examples[index] for index in order[start : start + size]] for start in range(0, len(examples), size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def score_histories(
    network: HistoryNetwork, texts: NDArray[np.float32], split: Split, config: HistoryConfig
) -> NDArray[np.float32]:
    """Return the scores (users, items) of all items for each user of the split, without cold-start scores."""
    histories = [
        make_history_input(history, split.training.kind, MAX_EVENTS, config.use_time) for history in split.histories
    ]
    order = sorted(range(len(histories)), key=lambda user: len(histories[user].items))
    scores = np.empty((len(histories), len(texts)), np.float32)
    with torch.inference_mode():
        vectors = network.item_vectors(
            torch.from_numpy(texts if config.use_text else np.zeros_like(texts)), network.known
        )
        for start in range(0, len(order), 16):
            users = order[start : start + 16]
            batch = collate_histories([histories[user] for user in users], vectors.device)
            scores[users] = network(batch, vectors).numpy()
    return scores


def cold_start_scores(
    network: HistoryNetwork, split: Split, cold: Items, weights: ColdStartWeights | None = None
) -> NDArray[np.float32]:
    """Return the cold-start scores (users, cold) of the items `cold` after each user's history.

    `weights` replace those of the network if they are set.
    """
    bias, neighbour_weight, taken_weight = network.newcomers.tolist()
    own_weights = ColdStartWeights(bias=bias, neighbours=neighbour_weight, taken=taken_weight)
    nearest_items = network.kin.numpy()
    neighbours = ItemNeighbours(
        network.neighbours.numpy(),
        network.nearness.numpy(),
        float(network.fade),
        ColdStart(weights or own_weights, nearest_items),
    )
    indices = encode_cold_index(nearest_items[cold, 0].astype(np.int64))
    histories = [history.items[-MAX_EVENTS:] for history in split.histories]
    return np.stack([neighbours.scores(items, np.ones(len(items), np.bool_))[indices] for items in histories])
