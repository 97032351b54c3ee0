"""A cell whose step has zoneout and recurrent dropout: to every backend a cell, with masks among its weights.

Does not draw masks: see `cellfuse.nn.masks`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property

from cellfuse.cell import Cell
from cellfuse.cell import cell_of_reference as unmasked_of_reference
from cellfuse.errors import CellError
from cellfuse.graph.graph import Graph
from cellfuse.graph.masks import MASKS, with_masks

_SHARE = r"[^=,+]+=(\d+(\.\d+)?(e-\d+)?)?"
_OPTIONS = re.compile(rf"({_SHARE}(,{_SHARE})*)?\+[01]")

Zoneout = tuple[tuple[str, float | None], ...]


@dataclass(frozen=True, eq=False)
class Masked(Cell):
    """A cell with masks; made by `masked`.

    Attributes:
        base: the cell without.
        zoneout, has_dropout: see `graph.masks.with_masks`.
    """

    base: Cell | None = None
    zoneout: Zoneout = ()
    has_dropout: bool = False

    def __post_init__(self) -> None:
        """The base has been checked."""

    @property
    def _of(self) -> Cell:
        assert self.base is not None
        return self.base

    @cached_property
    def step(self) -> Graph:
        """Graph of one time step, with biases."""
        return with_masks(self._of.step, dict(self.zoneout), self.has_dropout)

    @cached_property
    def step_without_bias(self) -> Graph:
        """Graph of one time step for a layer with bias=False."""
        return with_masks(self._of.step_without_bias, dict(self.zoneout), self.has_dropout)

    @cached_property
    def reference(self) -> str:
        """As `Cell.reference`, which `cell_of_reference` reads."""
        shares = ",".join(f"{state}={'' if p is None else repr(p)}" for state, p in self.zoneout)
        return f"{self._of.reference}+{shares}+{int(self.has_dropout)}"

    def __reduce__(self) -> tuple:
        return masked, (self._of, dict(self.zoneout), self.has_dropout)


def masked(base: Cell, zoneout: Mapping[str, float | None], has_dropout: bool) -> Cell:
    """The cell with masks, the same object for the same arguments; the base itself if there are none."""
    given = tuple((state, zoneout[state]) for state in base.states if state in zoneout)
    if not given and not has_dropout:
        return base
    # Kept on the cell, so that it goes when the cell goes.
    known = base.__dict__.setdefault("masked", {})
    key = given, has_dropout
    if key not in known:
        facts = {f.name: getattr(base, f.name) for f in fields(Cell) if f.init} | {"aten": ""}
        known.setdefault(key, Masked(**facts, base=base, zoneout=given, has_dropout=has_dropout))
    made: Cell = known[key]
    return made


def has_masks(cell: Cell) -> bool:
    """Whether a call needs masks besides the weights."""
    return any(leaf.role in MASKS for leaf in cell.step.inputs)


def cell_of_reference(reference: str) -> Cell:
    """As `cellfuse.cell.cell_of_reference`, masked cells included."""
    place, _, rest = reference.rpartition(":")  # the name of a module may hold anything
    meaning, *options = rest.split("+")
    base = unmasked_of_reference(f"{place}:{meaning}")
    if not options:
        return base
    if not _OPTIONS.fullmatch("+".join(options)):
        raise CellError(f"the masks of the cell are {'+'.join(options)!r}, expected 'STATE=SHARE,...+0|1'")
    shares = dict(part.split("=") for part in options[0].split(",") if part)
    zoneout = {state: float(share) if share else None for state, share in shares.items()}
    return masked(base, zoneout, options[1] == "1")
