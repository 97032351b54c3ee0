"""Resets inside sequences: each sequence is cut where it starts anew, and the pieces run as one packed batch.

Nothing flows from one piece to another, in either direction, so that this equals putting the initial
states back at every reset; with more and shorter sequences it also takes fewer time steps. No kernel knows
of resets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cellfuse.errors import BackendError
from cellfuse.runtime import graphs
from cellfuse.runtime.case import Case, Result


@dataclass(frozen=True)
class Pieces:
    """Where the pieces stand.

    Attributes:
        batch_sizes: pieces alive at each of their time steps.
        places: for each row of the input its row among the packed pieces, [N].
        first, last: the first and the last piece of each sequence, [B].
    """

    batch_sizes: Tensor
    places: Tensor
    first: Tensor
    last: Tensor


def run(case: Case, reset: Tensor, initial: Callable[[int], tuple[Tensor, ...]], run: Callable) -> Result:
    """Run a case whose sequences start anew where `reset` is true.

    Args:
        reset: bool; [T, B], or [N] where the input is packed: true where nothing comes from the time
            step before.
        initial: the initial states [L*D, B, width] for so many sequences.
        run: what runs a case.

    Raises:
        BackendError: a CUDA graph is captured.
    """
    if graphs.is_capturing(case.input.device):
        raise BackendError(
            "reset= decides on the host how sequences are cut, and a CUDA graph that is being captured may "
            "not wait for the host nor decide again when it is replayed. Capture calls without reset=, or "
            "layer.step, which takes reset= inside a graph."
        )
    if case.batch_sizes is None:
        alive, is_new = torch.ones(reset.shape, dtype=torch.bool), reset.cpu()
    else:
        sequences = torch.arange(case.states[0].shape[1])
        alive = sequences < case.batch_sizes.unsqueeze(1)
        is_new = torch.zeros(alive.shape, dtype=torch.bool).masked_scatter(alive, reset.cpu())
    if not is_new.any():
        return run(case)
    device = case.input.device
    anew = is_new[0].to(device)
    if not is_new[1:].any():
        return run(replace(case, states=_chosen(anew, initial(len(anew)), case)))
    pieces = cut(is_new, alive)
    places, first, last = (index.to(device) for index in (pieces.places, pieces.first, pieces.last))
    chosen = _chosen(anew, initial(len(anew)), case)
    count = int(pieces.batch_sizes[0])
    states = []
    for start, given in zip(initial(count), chosen, strict=True):
        lanes = zip(_lanes(start, case), _lanes(given, case), (first, last), strict=False)
        states.append(_join([lane.index_copy(1, index, value) for lane, value, index in lanes]))
    rows = case.input if case.batch_sizes is not None else case.input.flatten(0, 1)
    packed = replace(
        case,
        input=rows.index_select(0, places.argsort()),
        states=tuple(states),
        batch_sizes=pieces.batch_sizes,
    )
    output, finals = run(packed)
    output = output.index_select(0, places)
    if case.batch_sizes is None:
        output = output.unflatten(0, reset.shape)
    ends = (last, first)
    return output, tuple(
        _join([lane.index_select(1, index) for lane, index in zip(_lanes(final, case), ends, strict=False)])
        for final in finals
    )


def cut(is_new: Tensor, alive: Tensor) -> Pieces:
    """Cut sequences before each time step where they start anew.

    Args:
        is_new: [T, B], bool.
        alive: [T, B], the time steps that a sequence has; T of the longest.
    """
    steps = len(alive)
    begins = is_new & alive
    begins[0] = True
    # Pieces are numbered sequence by sequence, then by time.
    piece = (begins.T.flatten().cumsum(0) - 1).view(-1, steps).T
    time = torch.arange(steps).unsqueeze(1).expand_as(piece)
    start = time[begins.T.nonzero().unbind(1)[::-1]]
    lengths = torch.bincount(piece[alive])
    rank = lengths.argsort(descending=True, stable=True).argsort()
    ages = time - start[piece]
    batch_sizes = torch.bincount(ages[alive])
    offsets = batch_sizes.cumsum(0) - batch_sizes
    places = offsets[ages[alive]] + rank[piece[alive]]
    ends = alive.sum(0) - 1
    return Pieces(batch_sizes, places, rank[piece[0]], rank[piece.gather(0, ends.unsqueeze(0))[0]])


def _chosen(anew: Tensor, initial: tuple[Tensor, ...], case: Case) -> tuple[Tensor, ...]:
    """The states given; the initial ones in the forward direction of sequences that start anew at once."""
    made = []
    for start, given in zip(initial, case.states, strict=True):
        forward, *reverse = _lanes(given, case)
        forward = torch.where(anew.unsqueeze(-1), _lanes(start, case)[0].to(given.dtype), forward)
        made.append(_join([forward, *reverse]))
    return tuple(made)


def _lanes(state: Tensor, case: Case) -> tuple[Tensor, ...]:
    """A state [L*D, B, width] by direction: [L, B, width] each."""
    return state.unflatten(0, (case.num_layers, case.num_directions)).unbind(1)


def _join(lanes: list[Tensor]) -> Tensor:
    return torch.stack(lanes, 1).flatten(0, 1)
