"""The published cells, one file each. The folder is the registry: every Cell in it is found by name."""

import difflib
import importlib
import pkgutil

from cellfuse.cell import Cell
from cellfuse.errors import CellError

CELLS: dict[str, Cell] = {}

for _module in pkgutil.iter_modules(__path__):
    for _value in list(vars(importlib.import_module(f"{__name__}.{_module.name}")).values()):
        if isinstance(_value, Cell):
            CELLS[_value.name] = _value

# `cf.cells.lstm` is the cell, not the file it stands in.
globals().update(CELLS)


def find(name: str) -> Cell:
    """The published cell of this name.

    Raises:
        CellError: there is none; the message lists the nearest names.
    """
    if name not in CELLS:
        near = difflib.get_close_matches(name, CELLS, n=3) or sorted(CELLS)
        raise CellError(f"no cell is called {name!r}; did you mean {' or '.join(near)}?")
    return CELLS[name]
