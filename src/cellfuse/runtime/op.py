"""One direction of one layer as a differentiable function: which of the ways of `library` a call takes.

Outside of graphs and transforms the kernel is called directly, which is faster than through an operator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.runtime import library
from cellfuse.runtime.case import Case
from cellfuse.runtime.direction import Direction, direction_text
from cellfuse.runtime.private import is_forward_ad_active, is_functorch_active


def run_direction(
    backend: str, case: Case, k: int, is_reverse: bool, value: Tensor, states: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Entry k of the stack on `value`: (output, final states)."""
    weights = case.weights[k]
    sizes = Sizes(case.hidden_size, case.proj_size, case.num_heads)
    options = (case.cell, sizes, case.has_bias, is_reverse, case.must_recompute, tuple(weights), backend)
    if torch.compiler.is_compiling():
        text, packed = direction_text(*options), list(weights.values())
        made: Sequence[Tensor] = library.forward(value, states, packed, case.batch_sizes, text, False)
    else:
        made = run(Direction(*options), (value, *states, *weights.values()), case.batch_sizes)
    return made[0], list(made[1 : 1 + len(states)])


def run(direction: Direction, values: Sequence[Tensor], batch_sizes: Tensor | None) -> Sequence[Tensor]:
    """(output, *final states) of one direction, from (x, *states, *weights)."""
    if is_forward_ad_active():
        return direction.formula(values, batch_sizes)
    if is_functorch_active():
        return library.transformed(direction, batch_sizes, values)
    times = direction.times(values, batch_sizes)  # not before: transforms would wrap what is kept of it
    if torch.is_grad_enabled() and any(value.requires_grad for value in values):
        return library.direct(direction, times, values)
    return direction.forward(values, times, keep=False)[0]
