"""Our self-attention equals torch's and returns its maps."""

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
    attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    with torch.no_grad():
        layers = (ours.query, ours.key, ours.value)
        attention.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        attention.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        attention.out_proj.load_state_dict(ours.output.state_dict())
    return attention


@pytest.fixture
def states() -> torch.Tensor:
    return torch.randn(4, LENGTH, WIDTH, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def mask() -> torch.Tensor:
    return torch.arange(LENGTH)[None] < torch.tensor([LENGTH, 3, 1, 5])[:, None]


def test_outputs_and_maps_equal_those_of_torch(
    ours: SelfAttention, theirs: nn.MultiheadAttention, states: torch.Tensor, mask: torch.Tensor
) -> None:
    expected, expected_maps = theirs(states, states, states, key_padding_mask=~mask, average_attn_weights=False)
    output, maps = ours(states, mask, maps=True)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(maps, expected_maps)


def test_output_is_the_same_with_and_without_maps(
    ours: SelfAttention, states: torch.Tensor, mask: torch.Tensor
) -> None:
    torch.testing.assert_close(ours(states, mask)[0], ours(states, mask, maps=True)[0])


def test_padding_gets_no_attention(ours: SelfAttention, states: torch.Tensor, mask: torch.Tensor) -> None:
    _, maps = ours(states, mask, maps=True)
    assert maps is not None
    assert (maps.masked_select(~mask[:, None, None, :].expand_as(maps)) == 0).all()
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(4, HEADS, LENGTH))


def test_an_empty_row_gives_zeros_and_no_nan(ours: SelfAttention, states: torch.Tensor) -> None:
    mask = torch.zeros(4, LENGTH, dtype=torch.bool)
    mask[0] = True
    for maps in (False, True):
        output, _ = ours(states, mask, maps=maps)
        assert (output[1:] == 0).all()
        assert output[0].isfinite().all()
        assert (output[0] != 0).any()


def test_heads_can_be_narrower_than_the_states() -> None:
    narrow = SelfAttention(WIDTH, 2, 4)
    assert narrow.query.weight.shape == (4, WIDTH)
    output, maps = narrow(torch.randn(1, 3, WIDTH), torch.ones(1, 3, dtype=torch.bool), maps=True)
    assert output.shape == (1, 3, WIDTH)
    assert maps.shape == (1, 2, 3, 3)


def test_a_width_that_the_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="no multiple"):
        SelfAttention(WIDTH, 5, 12)
