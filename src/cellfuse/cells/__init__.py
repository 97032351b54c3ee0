"""The published cells, one file each. The folder is the registry: every Cell in it is found by name.

A cell of the user's own is found by the file it stands in: `find("path/to/file.py:name")`.
"""

import difflib
import importlib
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

from cellfuse.cell import Cell
from cellfuse.errors import CellError

CELLS: dict[str, Cell] = {}

for _module in pkgutil.iter_modules(__path__):
    for _value in list(vars(importlib.import_module(f"{__name__}.{_module.name}")).values()):
        if isinstance(_value, Cell):
            CELLS[_value.name] = _value

# `cf.cells.lstm` is the cell, not the file it stands in.
globals().update(CELLS)


def find(text: str) -> Cell:
    """The published cell called `text`, or the one that `path/to/file.py:name` names.

    The file is run as a module. What it raises is the user's own and is not caught.

    Raises:
        CellError: no published cell has that name (the message lists the nearest ones), there is no
            such file, or the name in it is no cell.
    """
    if ".py" in text:
        return _in_file(text)
    if text not in CELLS:
        near = difflib.get_close_matches(text, CELLS, n=3)
        known = f"did you mean {' or '.join(near)}" if near else f"there are {', '.join(sorted(CELLS))}"
        raise CellError(f"no cell is called {text!r}; {known}. For a cell of your own write file.py:name.")
    return CELLS[text]


def _in_file(text: str) -> Cell:
    place, _, name = text.rpartition(":")
    if text.endswith(".py"):
        place, name = text, ""
    path = Path(place)
    if not path.is_file():
        raise CellError(f"cell {text}: there is no file {place}. Write file.py:name.")
    module = ModuleType(f"cellfuse_user_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where pickle looks a cell's function up
    # Not importlib: it would leave a __pycache__ beside the user's file, and believe it even after
    # an edit within the same second.
    exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    found = getattr(module, name, None)
    if isinstance(found, Cell):
        return found
    own = [key for key, value in vars(module).items() if isinstance(value, Cell)]
    if own:
        hint = f"Cells in it: {', '.join(own)}. Write {place}:{own[0]}"
    else:
        hint = "It defines no cell: decorate the function with @cf.cell(...)"
    given = "names no cell" if not name else "is not a cell" if found else "is not in the file"
    raise CellError(f"cell {text}: {name or 'the part after the colon'} {given}. {hint}")
