"""Which cell `--cell` means: a published one by name, or the user's own from a file."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

from cellfuse import cells
from cellfuse.cell import Cell
from cellfuse.errors import TaskError


def find(text: str) -> Cell:
    """The cell called `text`, or the one that `path/to/file.py:name` names.

    The file is run as a module. What it raises is the user's own and is not caught.

    Raises:
        CellError: no published cell has that name.
        TaskError: there is no such file, or the name in it is no cell.
    """
    if ".py" not in text:
        return cells.find(text)
    place, _, name = text.rpartition(":")
    if text.endswith(".py"):
        place, name = text, ""
    path = Path(place)
    if not path.is_file():
        raise TaskError(f"--cell {text}: there is no file {place}. Write file.py:name.")
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
        hint = f"Cells in it: {', '.join(own)}. Write --cell {place}:{own[0]}"
    else:
        hint = "It defines no cell: decorate the function with @cf.cell(...)"
    given = "names no cell" if not name else "is not a cell" if found else "is not in the file"
    raise TaskError(f"--cell {text}: {name or 'the part after the colon'} {given}. {hint}")


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
