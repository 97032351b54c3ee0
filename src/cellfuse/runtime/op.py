"""One direction of one layer as a differentiable function: which of the ways of `library` a call takes.

Outside of graphs and transforms the kernel is called directly, which is faster than through an operator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cellfuse.runtime import library
from cellfuse.runtime.direction import Direction
from cellfuse.runtime.private import is_forward_ad_active, is_functorch_active


def run(direction: Direction, values: Sequence[Tensor], batch_sizes: Tensor | None) -> Sequence[Tensor]:
    """(output, *final states) of one direction, from (x, *states, *weights)."""
    if is_forward_ad_active():
        return direction.formula(values, batch_sizes)
    if is_functorch_active():
        made: tuple[Tensor, ...] = library.Transformed.apply(direction, batch_sizes, *values)
        return made[: 1 + len(direction.cell.states)]
    times = direction.times(values, batch_sizes)  # not before: transforms would wrap what is kept of it
    if torch.is_grad_enabled() and any(value.requires_grad for value in values):
        made = library.Direct.apply(times, direction, *values)
        return made
    return direction.forward(values, times, keep=False)
