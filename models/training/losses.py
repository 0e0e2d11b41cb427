"""Losses: cross-entropy with missing labels, and distillation."""

from __future__ import annotations

from torch import Tensor, xlogy
from torch.nn.functional import cosine_similarity, kl_div, log_softmax


def direction_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1 minus the mean cosine between the student's and the teacher's vectors, both (rows, width)."""
    return (1 - cosine_similarity(student, teacher, dim=-1)).mean()


def soft_target_loss(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Return KL(teacher || student) at a temperature, times its square (Hinton et al. 2015); both (batch, labels)."""
    student, teacher = (log_softmax(scores / temperature, dim=-1) for scores in (logits, target))
    return kl_div(student, teacher, log_target=True, reduction="batchmean") * temperature**2


def hidden_state_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Return the squared distance of the real tokens' states, as a share of the teacher's square.

    student and teacher (batch, length, width); mask (batch, length).
    """
    real = mask.unsqueeze(-1).to(student.dtype)
    return ((student - teacher).square() * real).sum() / (teacher.square() * real).sum()


def masked_cross_entropy(
    logits: Tensor, targets: Tensor, label_choices: Tensor, smoothing: Tensor, bootstrap: Tensor
) -> Tensor:
    """Return the mean cross-entropy over the labels that each row was chosen from.

    logits (batch, labels); targets and label_choices (batch, labels) bool; smoothing, bootstrap (batch,). A label
    outside `label_choices` is masked, because a two-class row says nothing about the third class. A row with several
    targets is one of them, so they share its weight as the network itself shares it. The target is (1 - s - b) targets
    + s uniform + b prediction (Szegedy et al. 2016; Reed et al. 2015, soft bootstrapping).
    """
    scores = log_softmax(logits.masked_fill(~label_choices, -1e4), dim=-1)
    prediction = scores.detach().exp()
    smooth, boot = smoothing.unsqueeze(1), bootstrap.unsqueeze(1)
    shared = prediction.clamp_min(1e-6) * targets
    uniform = smooth * label_choices / label_choices.sum(1, keepdim=True)
    target = (1 - smooth - boot) * shared / shared.sum(dim=1, keepdim=True) + uniform + boot * prediction
    return -(target * scores).sum(dim=1).mean()


def agreement_loss(first: Tensor, second: Tensor) -> Tensor:
    """Return the symmetric KL divergence of two answers to the same text, both (batch, labels) logits.

    This is the term of R-Drop (Liang et al. 2021).
    """
    one, other = log_softmax(first, dim=-1), log_softmax(second, dim=-1)
    forward = kl_div(one, other, log_target=True, reduction="batchmean")
    return (forward + kl_div(other, one, log_target=True, reduction="batchmean")) / 2


def expectation_regularization(logits: Tensor, label_choices: Tensor, share: Tensor) -> Tensor:
    """Return how far the labels that some rows could not have are from their expected share over the batch.

    logits and label_choices as in `masked_cross_entropy`; share (batch,). It is KL(share || mean probability of the
    absent labels) over the rows with absent labels, weighted by their share of the batch (expectation regularisation,
    Mann and McCallum 2007). It does not say that any single text is not neutral. It says that a set of opinions is not
    mostly neutral. Without it, a label that a data set's loss never names drifts freely there.
    """
    rows = ~label_choices.all(dim=1)
    if not rows.any():
        return logits.new_zeros(())
    expected = share[rows].mean()
    actual = (logits.softmax(dim=-1) * ~label_choices)[rows].sum(dim=1).mean().clamp(1e-6, 1 - 1e-6)
    divergence = xlogy(expected, expected / actual) + xlogy(1 - expected, (1 - expected) / (1 - actual))
    return divergence * rows.float().mean()
