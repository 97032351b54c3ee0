"""A stack of layers and directions from a function that runs one layer."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cellfuse.runtime.case import Case, Result


class RunLayer(Protocol):
    """Runs the directions of one layer on `value`: (output, final states) of each."""

    def __call__(
        self, case: Case, layer: int, value: Tensor, states: list[list[Tensor]]
    ) -> list[tuple[Tensor, list[Tensor]]]:
        """Of the case's tensors only the weights are used."""


def run_stack(case: Case, run_layer: RunLayer) -> Result:
    """Layer by layer."""
    value, finals, count = case.input, [], case.num_directions
    for layer in range(case.num_layers):
        entries = range(layer * count, (layer + 1) * count)
        made = run_layer(case, layer, value, [[state[k] for state in case.states] for k in entries])
        outputs = [output for output, _ in made]
        finals += [final for _, final in made]
        value = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        if case.dropout and layer < case.num_layers - 1:
            value = F.dropout(value, case.dropout, training=True)
    if len(finals) == 1:
        return value, tuple(final.unsqueeze(0) for final in finals[0])
    return value, tuple(torch.stack(each) for each in zip(*finals, strict=True))
