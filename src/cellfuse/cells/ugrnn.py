"""Update gate recurrent network: one gate between the old state and a candidate."""

import torch

from cellfuse.cell import cell


@cell(gates="ng", source="Collins, Sohl-Dickstein, Sussillo 2016, arXiv:1611.09913, eq. 4-6")
def ugrnn(gate, h):
    """One step of the update gate RNN. n: candidate, g: update gate."""
    n = torch.tanh(gate.n)
    g = torch.sigmoid(gate.g)
    return g * h + (1 - g) * n
