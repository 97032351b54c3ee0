"""A layer's directions as a differentiable function: which of the ways of `library` a call takes.

Outside of graphs and transforms the kernel is called directly, which is faster than through an operator and
runs both directions side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.runtime import direction as directions
from cellfuse.runtime import library
from cellfuse.runtime.case import Case
from cellfuse.runtime.direction import Direction, direction_text
from cellfuse.runtime.private import is_forward_ad_active, is_functorch_active


def run_layer(
    backend: str, case: Case, layer: int, value: Tensor, states: list[list[Tensor]]
) -> list[tuple[Tensor, list[Tensor]]]:
    """The directions of one layer on `value`: (output, final states) of each."""
    sizes = Sizes(case.hidden_size, case.proj_size, case.num_heads)
    first = layer * case.num_directions
    weights = case.weights[first : first + case.num_directions]
    made: list[Sequence[Tensor]] = []
    options = [
        (case.cell, sizes, case.has_bias, k == 1, case.must_recompute, tuple(each), backend)
        for k, each in enumerate(weights)
    ]
    tensors = [list(each.values()) for each in weights]
    if torch.compiler.is_compiling():
        for given, before, packed in zip(options, states, tensors, strict=True):
            text = direction_text(*given)
            made.append(library.forward(value, before, packed, case.batch_sizes, text, False))
    else:
        rest = [[*before, *packed] for before, packed in zip(states, tensors, strict=True)]
        made += run([Direction(*given) for given in options], value, rest, case.batch_sizes)
    return [(each[0], list(each[1 : 1 + len(case.states)])) for each in made]


def run(
    each: Sequence[Direction], x: Tensor, rest: Sequence[Sequence[Tensor]], batch_sizes: Tensor | None
) -> Sequence[Sequence[Tensor]]:
    """(output, *final states) of each direction, from x and their (*states, *weights)."""
    values = [(x, *tensors) for tensors in rest]
    pairs = list(zip(each, values, strict=True))
    if is_forward_ad_active():
        return [direction.formula(given, batch_sizes) for direction, given in pairs]
    if is_functorch_active():
        return [library.transformed(direction, batch_sizes, given) for direction, given in pairs]
    # Not before: transforms would wrap what is kept of the times.
    calls = [(direction, direction.times(given, batch_sizes)) for direction, given in pairs]
    if torch.is_grad_enabled() and any(value.requires_grad for given in values for value in given):
        made = library.direct(calls, (x, *(value for tensors in rest for value in tensors)))
        count = len(made) // len(calls)
        return [made[k * count : (k + 1) * count] for k in range(len(calls))]
    return [made for made, _ in directions.forward(calls, values, keep=False)]
