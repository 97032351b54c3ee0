"""Order and initial values of a layer's parameters: torch.nn's for torch's cells."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from cellfuse.cell import Cell, Initial
from cellfuse.slots import Slot, slots


@dataclass(frozen=True)
class Block:
    """The parameters of one layer and direction.

    Attributes:
        suffix: of their names, such as "_l0_reverse".
        slots: in torch's order.
        names: (name without, name with the suffix) of each.
    """

    suffix: str
    slots: tuple[Slot, ...]
    names: tuple[tuple[str, str], ...]


def blocks(
    cell: Cell,
    input_size: int,
    hidden_size: int,
    *,
    num_layers: int,
    num_directions: int,
    bias: bool,
    proj_size: int,
    num_heads: int,
) -> tuple[Block, ...]:
    """The parameters of a stack, layer by layer, forward direction first."""
    made = []
    for layer in range(num_layers):
        width = input_size if layer == 0 else num_directions * (proj_size or hidden_size)
        of_layer = slots(cell, width, hidden_size, bias=bias, proj_size=proj_size, num_heads=num_heads)
        for way in ("", "_reverse")[:num_directions]:
            suffix = f"_l{layer}{way}"
            names = tuple((slot.name, slot.name + suffix) for slot in of_layer)
            made.append(Block(suffix, of_layer, names))
    return tuple(made)


@torch.no_grad()
def initialise(values: dict[str, torch.Tensor], cell: Cell, made: tuple[Slot, ...], hidden_size: int) -> None:
    """Fill one layer and direction's parameters; torch's uniform +-1/sqrt(H) unless the cell differs.

    Draws in the order of the slots, so that the same seed gives torch.nn's own values.
    """
    for slot in made:
        value = values[slot.name]
        own = cell.parameters.get(slot.name)
        initial = own.initial if own else cell.initial.get(slot.name, "uniform")
        _fill(value, initial, hidden_size)
        for place, gate in enumerate(slot.rows):
            if f"{slot.name}.{gate}" in cell.initial:
                part = value.narrow(0, place * hidden_size, hidden_size)
                _fill(part, cell.initial[f"{slot.name}.{gate}"], hidden_size)


def _fill(value: torch.Tensor, initial: Initial, hidden_size: int) -> None:
    if callable(initial):
        initial(value)
    elif isinstance(initial, str):
        bound = 1.0 / math.sqrt(hidden_size) if hidden_size > 0 else 0.0
        value.uniform_(-bound, bound)
    elif isinstance(initial, tuple):
        value.uniform_(*initial)
    else:
        value.fill_(initial)
