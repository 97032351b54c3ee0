"""Independently recurrent network: each unit sees only its own past."""

import torch

from cellfuse.cell import cell


@cell(
    gates="n",
    recurrence="diagonal",
    initial={"weight_hh": (0.0, 1.0)},
    source="Li et al. 2018, arXiv:1803.04831, eq. 3",
)
def indrnn(gate, h):
    """One step of the independently recurrent network. n: the new state before relu."""
    return torch.relu(gate.n)
