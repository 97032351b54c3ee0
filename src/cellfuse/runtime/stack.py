"""A stack of layers and directions from a function that runs one direction of one layer."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cellfuse.runtime.case import Case, Result


class RunDirection(Protocol):
    """Runs entry k of the stack on `value`: (output, final states)."""

    def __call__(
        self, case: Case, k: int, is_reverse: bool, value: Tensor, states: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Of the case's tensors only the weights are used."""


def run_stack(case: Case, run_direction: RunDirection) -> Result:
    """Layer by layer, direction by direction."""
    value, finals = case.input, []
    for layer in range(case.num_layers):
        outputs = []
        for direction in range(case.num_directions):
            k = layer * case.num_directions + direction
            states = [state[k] for state in case.states]
            output, final = run_direction(case, k, direction == 1, value, states)
            outputs.append(output)
            finals.append(final)
        value = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        if case.dropout and layer < case.num_layers - 1:
            value = F.dropout(value, case.dropout, training=True)
    if len(finals) == 1:
        return value, tuple(final.unsqueeze(0) for final in finals[0])
    return value, tuple(torch.stack(each) for each in zip(*finals, strict=True))
