"""Losses: cross-entropy with missing labels, and distillation."""

from __future__ import annotations

import torch
from torch import Tensor, xlogy
from torch.nn.functional import cosine_similarity, kl_div, log_softmax


def direction_loss(own: Tensor, shown: Tensor) -> Tensor:
    """How far the student's vectors point away from the teacher's, both (rows, width)."""
    return (1 - cosine_similarity(own, shown, dim=-1)).mean()


def soft_target_loss(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) at a temperature, times its square (Hinton et al. 2015); both (batch, labels)."""
    own, taught = (log_softmax(scores / temperature, dim=-1) for scores in (logits, target))
    return kl_div(own, taught, log_target=True, reduction="batchmean") * temperature**2


def hidden_state_loss(own: Tensor, shown: Tensor, mask: Tensor) -> Tensor:
    """Squared distance of the real tokens' states, (batch, length, width), as a share of the teacher's square."""
    real = mask.unsqueeze(-1).to(own.dtype)
    return ((own - shown).square() * real).sum() / (shown.square() * real).sum()


def masked_cross_entropy(logits: Tensor, label: Tensor, among: Tensor, smoothing: Tensor, bootstrap: Tensor) -> Tensor:
    """Mean cross-entropy over the labels each row was chosen among.

    logits (batch, labels); label (batch,); among (batch, labels) bool; smoothing, bootstrap (batch,). A label outside
    `among` takes no part: a two-class row says nothing about the third. The target is
    (1 - s - b) one-hot + s uniform + b own answer (Szegedy et al. 2016; Reed et al. 2015, soft bootstrapping).
    """
    scores = log_softmax(logits.masked_fill(~among, -1e4), dim=-1)
    own = scores.detach().exp()
    smooth, boot = smoothing.unsqueeze(1), bootstrap.unsqueeze(1)
    one_hot = torch.zeros_like(scores).scatter_(1, label.unsqueeze(1), 1.0)
    target = (1 - smooth - boot) * one_hot + smooth * among / among.sum(1, keepdim=True) + boot * own
    return -(target * scores).sum(dim=1).mean()


def expectation_regularization(logits: Tensor, among: Tensor, share: Tensor) -> Tensor:
    """How far the labels that some rows could not have are from their expected share over the batch.

    logits, among as in `loss_of`; share (batch,). KL(share || mean probability of the absent labels), for the rows
    that have any, weighted by their part of the batch: expectation regularisation (Mann and McCallum 2007). It says of
    no single text that it is not neutral, only that a set of opinions is not mostly neutral; without it a label that
    the loss of such a set never names drifts freely there.
    """
    rows = ~among.all(dim=1)
    if not rows.any():
        return logits.new_zeros(())
    expected = share[rows].mean()
    found = (logits.softmax(dim=-1) * ~among)[rows].sum(dim=1).mean().clamp(1e-6, 1 - 1e-6)
    divergence = xlogy(expected, expected / found) + xlogy(1 - expected, (1 - expected) / (1 - found))
    return divergence * rows.float().mean()
