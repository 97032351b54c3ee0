"""Quasi-recurrent network, fo-pooling: gates that see the input only, and an output gate."""

import torch

from cellfuse.cell import cell


@cell(
    gates="nfo",
    states="c",
    source="Bradbury et al. 2016, arXiv:1611.01576, eq. 4",
    deviation="a window of one time step; a wider one is a convolution of the input before the layer",
)
def qrnn(gate, c):
    """One step of the QRNN. Its output is no state. n: candidate, f: forget gate, o: output gate."""
    f = torch.sigmoid(gate.f.x)
    c = f * c + (1 - f) * torch.tanh(gate.n.x)
    return torch.sigmoid(gate.o.x) * c, (c,)
