"""The network of masked-language pretraining: an encoder that predicts the tokens which its input hides.

Its output weights are the encoder's word embeddings (Press and Wolf 2017). This module knows no data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from models.networks.encoder import Network


class MaskedLanguageNetwork(Network):
    """An encoder with a head that predicts tokens. `frequencies` (vocabulary,) are the tokens' counts in the texts.

    The bias starts as the logarithm of the frequencies. So the head need not learn first how common each token is.
    """

    def __init__(self, encoder: PreTrainedModel, frequencies: Tensor) -> None:
        super().__init__(encoder)
        width = encoder.config.hidden_size
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        counts = frequencies.float() + 1.0
        self.bias = nn.Parameter((counts / counts.sum()).log())
        nn.init.normal_(self.transform[0].weight, std=0.02)  # type: ignore[arg-type]

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Map ids and mask (batch, length) to logits (n, vocabulary) at the n true `positions` (batch, length).

        Only those positions pay for the vocabulary.
        """
        hidden = self.states(ids, mask, torch.zeros_like(ids))[-1][positions]
        logits: Tensor = linear(self.transform(hidden), self.word_embeddings, self.bias)
        return logits

    @property
    def word_embeddings(self) -> Tensor:
        weight: Tensor = self.encoder.get_input_embeddings().weight  # type: ignore[assignment]
        return weight


@dataclass(frozen=True, slots=True)
class MaskingRule:
    """The rule by which tokens are hidden (Devlin et al. 2019).

    A share `masked` of the tokens is to be predicted, and at least one of each text. Of those, a share `hidden` is
    replaced by `mask_id` and a share `swapped` by random tokens of the vocabulary. The others stay.
    """

    mask_id: int
    special_ids: tuple[int, ...]
    vocabulary: int
    masked: float = 0.15
    hidden: float = 0.8
    swapped: float = 0.1


def hide_tokens(
    ids: Tensor, mask: Tensor, rule: MaskingRule, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Return the ids (batch, length) with hidden tokens, and where tokens are to be predicted (batch, length).

    Draws are on the CPU, so a generator gives the same on every device.
    """

    def draw() -> Tensor:
        return torch.rand(ids.shape, generator=generator).to(ids.device)

    special = torch.isin(ids, torch.tensor(rule.special_ids, device=ids.device))
    order = draw().masked_fill(special | ~mask.bool(), 2.0)
    positions = ((order < rule.masked) | (order == order.amin(dim=1, keepdim=True))) & (order < 2.0)
    fate = draw()
    words = torch.randint(rule.vocabulary, ids.shape, generator=generator).to(ids.device)
    hidden = torch.where(positions & (fate < rule.hidden), rule.mask_id, ids)
    return torch.where(positions & (fate >= 1.0 - rule.swapped), words, hidden), positions
