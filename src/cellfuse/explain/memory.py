"""The memory that training takes: what autograd keeps after one forward pass, read off the real tensors.

It depends on the backend, the processor and the options, so it is measured, not computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from cellfuse.explain.evaluate import in_training, result_of
from cellfuse.explain.facts import Memory
from cellfuse.explain.subject import Subject

# Numbers of the gates and states of all time steps from which on it is not measured: a quarter of a gigabyte.
_MOST = 1 << 26


def memory_of(layer: nn.Module, subject: Subject, input: Any, hx: Any) -> Memory | None:
    """What one forward pass in training leaves in memory; None if that would be much."""
    sizes = subject.sizes
    numbers = len(subject.cell.gates) + len(subject.cell.states)
    if sizes["S"] * sizes["L"] * sizes["D"] * sizes["H"] * numbers > _MOST:
        return None
    own = {*map(_place, layer.parameters()), *map(_place, layer.buffers()), *map(_place, _tensors(input, hx))}
    kept: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        if _place(value) not in own:
            kept[_place(value)] = value.untyped_storage().nbytes()
        return value

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        results = _tensors(*result_of(in_training(layer), input, hx))
    alive = kept | {_place(value): value.untyped_storage().nbytes() for value in results}
    return Memory(sum(kept.values()), sum(alive.values()))


def _place(value: Tensor) -> int:
    """Where a tensor's memory begins; views of one memory count once."""
    return value.untyped_storage().data_ptr()


def _tensors(*values: Any) -> list[Tensor]:
    """All tensors in some results or arguments."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, PackedSequence):
            found += [each for each in value if each is not None]
        elif isinstance(value, tuple):
            found += _tensors(*value)
    return found
