"""Names, shapes, order and initial values of a layer's parameters: torch.nn's for torch's cells."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from cellfuse.cell import Cell, Initial


@dataclass(frozen=True)
class Slot:
    """One parameter of one layer and direction.

    Attributes:
        name: without the suffix of layer and direction, such as "weight_ih".
        shape: its shape.
        learned: False for a constant, which becomes a buffer.
        rows: the gates whose blocks of rows it holds, in packing order; () if it holds none.
    """

    name: str
    shape: tuple[int, ...]
    learned: bool = True
    rows: tuple[str, ...] = ()


def slots(
    cell: Cell,
    input_size: int,
    hidden_size: int,
    *,
    bias: bool = True,
    proj_size: int = 0,
    num_heads: int = 1,
) -> tuple[Slot, ...]:
    """The parameters of one layer and direction, in torch's order, the cell's own at the end."""
    into, back = cell.input_gates, cell.recurrent_gates
    shape_hh: tuple[int, ...] = (len(back) * hidden_size,)
    if cell.recurrence == "blocks":
        shape_hh += (hidden_size // num_heads,)
    elif cell.recurrence == "dense":
        shape_hh += (_operand_width(cell, hidden_size, proj_size),)
    made: list[Slot] = []
    if into:
        made.append(Slot("weight_ih", (len(into) * hidden_size, input_size), rows=into))
    if back:
        made.append(Slot("weight_hh", shape_hh, rows=back))
    if bias and into and "ih" in cell.biases:
        made.append(Slot("bias_ih", (len(into) * hidden_size,), rows=into))
    if bias and back and "hh" in cell.biases:
        made.append(Slot("bias_hh", (len(back) * hidden_size,), rows=back))
    if cell.projected:
        made.append(Slot("weight_hr", (proj_size, hidden_size)))
    per = {"unit": (hidden_size,), "gate": (len(cell.gates) * hidden_size,), "cell": ()}
    for name, parameter in cell.parameters.items():
        if bias or not parameter.is_bias:
            rows = cell.gates if parameter.per == "gate" else ()
            made.append(Slot(name, per[parameter.per], parameter.learned, rows))
    return tuple(made)


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


def _operand_width(cell: Cell, hidden_size: int, proj_size: int) -> int:
    """Columns of weight_hh: what the recurrent products multiply is P or H wide."""
    widths = {leaf.shape[1] for leaf in cell.step.of_role("matrix") if leaf.label != "W_hr"}
    return proj_size if widths == {"P"} else hidden_size


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
