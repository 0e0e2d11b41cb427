"""Our self-attention is torch's, and says what it attended to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.networks.attention import SelfAttention

WIDTH, HEADS, LENGTH = 12, 3, 7


@pytest.fixture
def ours() -> SelfAttention:
    torch.manual_seed(2)
    return SelfAttention(WIDTH, HEADS, WIDTH)


@pytest.fixture
def theirs(ours: SelfAttention) -> nn.MultiheadAttention:
    found = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    with torch.no_grad():
        parts = (ours.query, ours.key, ours.value)
        found.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        found.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        found.out_proj.load_state_dict(ours.output.state_dict())
    return found


@pytest.fixture
def states() -> torch.Tensor:
    return torch.randn(4, LENGTH, WIDTH, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def mask() -> torch.Tensor:
    return torch.arange(LENGTH)[None] < torch.tensor([LENGTH, 3, 1, 5])[:, None]


def test_outputs_and_maps_are_those_of_torch(
    ours: SelfAttention, theirs: nn.MultiheadAttention, states: torch.Tensor, mask: torch.Tensor
) -> None:
    expected, maps = theirs(states, states, states, key_padding_mask=~mask, average_attn_weights=False)
    found, own_maps = ours(states, mask, maps=True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(own_maps, maps)


def test_output_is_the_same_with_and_without_maps(
    ours: SelfAttention, states: torch.Tensor, mask: torch.Tensor
) -> None:
    torch.testing.assert_close(ours(states, mask)[0], ours(states, mask, maps=True)[0])


def test_padding_is_never_attended_to(ours: SelfAttention, states: torch.Tensor, mask: torch.Tensor) -> None:
    _, maps = ours(states, mask, maps=True)
    assert maps is not None
    assert (maps.masked_select(~mask[:, None, None, :].expand_as(maps)) == 0).all()
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(4, HEADS, LENGTH))


def test_row_without_anything_gives_zeros_and_no_nan(ours: SelfAttention, states: torch.Tensor) -> None:
    mask = torch.zeros(4, LENGTH, dtype=torch.bool)
    mask[0] = True
    for maps in (False, True):
        found, _ = ours(states, mask, maps=maps)
        assert (found[1:] == 0).all()
        assert found[0].isfinite().all()
        assert (found[0] != 0).any()


def test_narrow_heads_have_the_width_they_are_given() -> None:
    narrow = SelfAttention(WIDTH, 2, 4)
    assert narrow.query.weight.shape == (4, WIDTH)
    found, maps = narrow(torch.randn(1, 3, WIDTH), torch.ones(1, 3, dtype=torch.bool), maps=True)
    assert found.shape == (1, 3, WIDTH)
    assert maps.shape == (1, 2, 3, 3)


def test_width_that_heads_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="no multiple"):
        SelfAttention(WIDTH, 5, 12)
