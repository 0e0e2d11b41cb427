"""Hidden tokens, and the network that predicts them."""

from __future__ import annotations

import pytest
import torch

from models.networks.masked_language import MaskedLanguageNetwork, MaskingRule, hide_tokens
from tests.support.tiny_networks import tiny_encoder

RULE = MaskingRule(mask_id=3, special_ids=(0, 2, 1), vocabulary=1000)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(4, 1000, (300, 40))
    ids[:, 0], ids[:, -3], ids[:, -2:] = 0, 2, 1
    return ids, (ids != 1).long()


def test_hidden_tokens_have_the_shares_of_the_rule_and_special_tokens_stay() -> None:
    ids, mask = batch()
    changed, positions = hide_tokens(ids, mask, RULE)
    assert not positions[:, [0, -3, -2, -1]].any()
    assert torch.equal(changed[~positions], ids[~positions])
    chosen = float(positions.sum())
    assert chosen / (300 * 36) == pytest.approx(0.15, abs=0.02)
    assert float((changed[positions] == 3).sum()) / chosen == pytest.approx(0.8, abs=0.04)
    assert float((changed[positions] == ids[positions]).sum()) / chosen == pytest.approx(0.1, abs=0.03)


def test_every_text_has_a_hidden_token_and_a_generator_fixes_them() -> None:
    ids = torch.tensor([[0, 7, 2, 1], [0, 2, 1, 1]])
    mask = (ids != 1).long()
    for seed in range(20):
        _, positions = hide_tokens(ids, mask, RULE, torch.Generator().manual_seed(seed))
        assert positions.tolist() == [[False, True, False, False], [False] * 4]
    ids, mask = batch()
    first, second = (hide_tokens(ids, mask, RULE, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_only_the_asked_positions_are_predicted_by_the_word_embeddings() -> None:
    network = MaskedLanguageNetwork(tiny_encoder(1, 50), torch.zeros(50)).eval()
    ids, mask = torch.randint(4, 50, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    positions = torch.zeros(2, 6, dtype=torch.bool)
    positions[0, 2] = positions[1, 4] = True
    whole = network(ids, mask, torch.ones_like(positions)).reshape(2, 6, 50)
    torch.testing.assert_close(network(ids, mask, positions), whole[positions])
    torch.autograd.backward(whole.sum())
    assert network.encoder.get_input_embeddings().weight.grad is not None
    assert not any(parameter.shape == (50, 32) for parameter in network.transform.parameters())


def test_the_bias_starts_at_the_frequencies_of_the_tokens() -> None:
    counts = torch.tensor([9, 0, 89, 0])
    network = MaskedLanguageNetwork(tiny_encoder(1, 4), counts)
    assert network.bias.exp().tolist() == pytest.approx([10 / 102, 1 / 102, 90 / 102, 1 / 102])
