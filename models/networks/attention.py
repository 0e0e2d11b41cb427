"""Multi-head self-attention that can return its attention maps (Vaswani et al. 2017, section 3.2.2).

This module knows torch alone.
"""

from __future__ import annotations

from math import sqrt

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class SelfAttention(nn.Module):
    """Self-attention. `inner` is the total width of the heads, which may be less than `width`.

    `forward` maps states (batch, length, width) and a mask (batch, length), True for real positions, to states
    (batch, length, width). A row without any real position gets zeros. With `maps` it also returns the weights (batch,
    heads, queries, keys). Their rows sum to 1, or to 0 in an empty row of the batch.
    """

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        if inner % heads:
            raise ValueError(f"the inner width {inner} is no multiple of the {heads} heads")
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, inner) for _ in range(3))
        self.output = nn.Linear(inner, width)

    def forward(self, states: Tensor, mask: Tensor, maps: bool = False) -> tuple[Tensor, Tensor | None]:
        query, key, value = (self._split(layer(states)) for layer in (self.query, self.key, self.value))
        has_keys = mask.any(dim=1)[:, None, None]
        # A row of the batch without any key would be 0 / 0. It attends to its padding, and its output is set to zero.
        allowed = (mask[:, None, None, :] | ~has_keys[..., None]).expand(-1, -1, states.shape[1], -1)
        if not maps:
            mixed = scaled_dot_product_attention(query, key, value, attn_mask=allowed)
            return self._join(mixed) * has_keys, None
        scores = (query @ key.transpose(-1, -2)) / sqrt(query.shape[-1])
        weights = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1) * has_keys[..., None]
        return self._join(weights @ value) * has_keys, weights

    def _split(self, states: Tensor) -> Tensor:
        """Reshape (batch, length, inner) to (batch, heads, length, inner / heads)."""
        batch, length, inner = states.shape
        return states.view(batch, length, self.heads, inner // self.heads).transpose(1, 2)

    def _join(self, mixed: Tensor) -> Tensor:
        batch, _, length, _ = mixed.shape
        joined: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, length, -1))
        return joined
