"""One time step of a cell by calling its very function on tensors: what every backend is compared with.
Slow, and one layer and direction only; `cellfuse.nn` has the layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from cellfuse.cell import Cell


def one_step(
    cell: Cell, weights: Mapping[str, Tensor], x: Tensor, *states: Tensor, num_heads: int = 1
) -> Any:
    """What the cell's function returns for one time step, in plain PyTorch that autograd follows.

    Args:
        weights: a layer's parameters without the suffix, as weight_ih. Missing biases are 0.
        x: the input, [B, I].
        states: [B, H] each, the projected one [B, P].
        num_heads: of a cell with recurrence="blocks".
    """
    own: list[Any] = []
    for name, parameter in cell.parameters.items():
        value = weights.get(name, x.new_zeros(len(cell.gates) if parameter.per == "gate" else ()))
        parts = value.chunk(len(cell.gates)) if parameter.per == "gate" else ()
        own.append(SimpleNamespace(**dict(zip(cell.gates, parts, strict=True))) if parts else value)
    gates = {gate: _gate(cell, gate, weights, x, states[0], num_heads) for gate in cell.gates}
    gate = SimpleNamespace(**gates, project=lambda value: F.linear(value, weights["weight_hr"]))
    return cell.function(gate, *states, *own)


def _gate(
    cell: Cell, gate: str, weights: Mapping[str, Tensor], x: Tensor, first: Tensor, heads: int
) -> Tensor:
    """The sum of both parts, a tensor with the attributes x, h and of; a part that does not exist is 0."""

    def rows(name: str, gates: tuple[str, ...]) -> Tensor | None:
        return (
            weights[name].chunk(len(gates))[gates.index(gate)] if name in weights and gate in gates else None
        )

    W, b = rows("weight_ih", cell.input_gates), rows("bias_ih", cell.input_gates)
    R, d = rows("weight_hh", cell.recurrent_gates), rows("bias_hh", cell.recurrent_gates)

    def of(value: Tensor) -> Tensor:
        if R is None or cell.recurrence == "dense":
            return x.new_zeros(()) if R is None else F.linear(value, R, d)
        blocks = value.unflatten(-1, (heads, -1)).unsqueeze(-2)
        apart = (R.unflatten(0, (heads, -1)) * blocks).sum(-1).flatten(-2) if R.dim() == 2 else R * value
        return apart if d is None else apart + d

    nothing = x.new_zeros(())
    input_product = nothing if W is None else F.linear(x, W, b)
    fits = R is None or cell.recurrence != "dense" or R.shape[1] == first.shape[-1]  # else only of() is used
    recurrent_product = of(first) if fits else nothing
    made = input_product + recurrent_product
    made.x, made.h, made.of = input_product, recurrent_product, of  # type: ignore[attr-defined]
    return made
