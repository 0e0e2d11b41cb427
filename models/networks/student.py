"""A shallower network, made from layers of a teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from models.graph.builder import EMBEDDING_LEVELS
from models.graph.names import WORD_EMBEDDINGS
from models.networks.encoder import AnyNetwork, keep_layers, require_token_types
from models.networks.quantization import fit_steps, quantize_encoder, round_rows, set_steps

FITTED_BATCHES = 16
"""The number of first training batches to which the initial quantisation steps are fitted."""


def make_student(
    teacher: AnyNetwork, layers: Sequence[int], batches: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> AnyNetwork:
    """Return a student of the teacher's word embeddings and these of its layers, all in 8 bits.

    It has no dropout, because it sees few texts twice. The steps of its inputs are fitted to `batches` of ids, mask and
    types, each (batch, length). Raises ValueError as `require_token_types` does.
    """
    require_token_types(teacher)
    student = keep_layers(deepcopy(teacher), layers)
    steps = fit_steps(student, batches)
    quantize_encoder(student)
    set_steps(student, steps)
    words = student.get_parameter(WORD_EMBEDDINGS)
    words.data = round_rows(words.data, EMBEDDING_LEVELS)
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return student


StatesFunction = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
"""`Network.states`, or a compiled version of it."""


def compile_states(states: StatesFunction) -> StatesFunction:
    compiled: StatesFunction = torch.compile(states, dynamic=True)
    return compiled
