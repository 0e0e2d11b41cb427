from __future__ import annotations

import numpy as np
import pytest
import torch

from models.networks.intent import OUT_OF_SCOPE, margin_loss


def test_the_margin_raises_the_loss_and_out_of_scope_rows_should_be_far_from_all_intents() -> None:
    cosines = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.1, 0.1], [0.9, 0.1, 0.1]])
    correct, even, confident = (
        float(margin_loss(cosines[row : row + 1], torch.tensor([label])))
        for row, label in ((0, 0), (1, OUT_OF_SCOPE), (2, OUT_OF_SCOPE))
    )
    plain = float(torch.nn.functional.cross_entropy(24.0 * cosines[:1], torch.tensor([0])))
    assert correct > plain
    assert even == pytest.approx(0.5 * np.log(3), abs=1e-4)
    assert confident > even
