"""Whether the cell that `--cell` means and `--proj-size` fit together. Finding a cell: `cellfuse.cells`."""

from __future__ import annotations

from cellfuse import cells
from cellfuse.cell import Cell
from cellfuse.errors import TaskError


def check_projection(cell: Cell, proj_size: int) -> None:
    """`--proj-size` and a cell that projects its state come together or not at all.

    Raises:
        TaskError: one of them is missing.
    """
    if proj_size and not cell.projected:
        those = ", ".join(name for name, other in cells.CELLS.items() if other.projected)
        raise TaskError(
            f"--proj-size {proj_size}: {cell.name} has no projected state. Cells that have one: {those}."
        )
    if cell.projected and not proj_size:
        raise TaskError(f"{cell.name} projects its state to P features. Write --proj-size P.")
