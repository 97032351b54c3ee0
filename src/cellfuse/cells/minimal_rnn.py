"""Minimal RNN: the input is mapped to the space of the state, and one gate mixes the two."""

import torch

from cellfuse.cell import cell


@cell(
    gates="zuv",
    source="Chen 2017, arXiv:1711.06788, eq. 1-2",
    deviation="the map of the input is one layer with tanh; the paper allows any network",
)
def minimal_rnn(gate, h):
    """One step of the minimal RNN. z: mapped input, u: gate from the state, v: gate from z."""
    z = torch.tanh(gate.z.x)
    u = torch.sigmoid(gate.u.h + gate.v.of(z))
    return u * h + (1 - u) * z
