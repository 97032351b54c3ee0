"""The masks of zoneout= and recurrent_dropout=: which cell a layer runs with them, and the drawing of them.

Masks are drawn by torch before the loop, so that torch.manual_seed makes them again on every backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cellfuse.cell import Cell
from cellfuse.graph.masks import DROPOUT, zoneout_label
from cellfuse.masked import masked
from cellfuse.nn import arguments
from cellfuse.runtime.case import Case

# As the user gives it: a probability for every state, or by the name of a state.
Zoneout = float | Mapping[str, float]


@dataclass(frozen=True)
class Masks:
    """What masks a layer draws.

    Attributes:
        zoneout: (state, probability) of the states that have any.
        dropout: probability of zeroing a unit that recurrent products read.
        in_training, in_evaluation: the cell with masks, and with the expectation in their place.
    """

    zoneout: tuple[tuple[str, float], ...]
    dropout: float
    in_training: Cell
    in_evaluation: Cell

    def drawn(self, case: Case) -> Case:
        """The case with masks among its weights."""
        rows = case.input.shape[:-1]
        batch = case.states[0].shape[1]
        return replace(
            case, weights=tuple({**weights, **self._draw(case, rows, batch)} for weights in case.weights)
        )

    def _draw(self, case: Case, rows: torch.Size, batch: int) -> dict[str, Tensor]:
        """Those of one layer and direction: first of its states in their order, then of its products."""
        widths, made = {"H": case.hidden_size, "P": case.proj_size}, {}
        # Not made from the input, which under vmap would be many.
        kind: dict[str, Any] = {"dtype": case.input.dtype, "device": case.input.device}
        for state, share in self.zoneout:
            like = torch.empty(*rows, widths[case.cell.width(state)], **kind)
            made[zoneout_label(state)] = torch.bernoulli(like, share)
        if self.dropout:
            width = next(m.shape[0] for m in case.step.inputs if m.label == DROPOUT)
            like = torch.empty(batch, widths[width], **kind)
            made[DROPOUT] = torch.bernoulli(like, 1.0 - self.dropout) / (1.0 - self.dropout)
        return made


def of_options(cell: Cell, zoneout: Any, recurrent_dropout: Any) -> Masks | None:
    """The masks that two options of a layer ask for; None if there are none.

    Raises:
        OptionError, OptionTypeError: an option is wrong.
    """
    shares = arguments.checked_zoneout(cell, zoneout)
    arguments.check_recurrent_dropout(cell, recurrent_dropout)
    some, share = tuple((state, p) for state, p in shares.items() if p), float(recurrent_dropout)
    if not some and not share:
        return None
    in_training = masked(cell, dict.fromkeys(dict(some)), share > 0)
    return Masks(some, share, in_training, masked(cell, dict(some), False))
