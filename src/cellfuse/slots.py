"""Names and shapes of the parameters of a layer: torch.nn's for torch's cells."""

from __future__ import annotations

from dataclasses import dataclass

from cellfuse.cell import Cell


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


def _operand_width(cell: Cell, hidden_size: int, proj_size: int) -> int:
    """Columns of weight_hh: what the recurrent products multiply is P or H wide."""
    widths = {leaf.shape[1] for leaf in cell.step.of_role("matrix") if leaf.label != "W_hr"}
    return proj_size if widths == {"P"} else hidden_size
