"""LSTM that forgets exactly as much as it takes in (coupled input and forget gate)."""

import torch

from cellfuse.cell import cell


@cell(
    gates="igo",
    states="hc",
    source="Greff et al. 2015, arXiv:1503.04069, variant CIFG: f = 1 - i",
    deviation="no peepholes",
)
def coupled_lstm(gate, h, c):
    """One step of the LSTM with f = 1 - i. i: input gate, g: candidate, o: output gate."""
    i = torch.sigmoid(gate.i)
    g = torch.tanh(gate.g)
    o = torch.sigmoid(gate.o)
    c = (1 - i) * c + i * g
    h = o * torch.tanh(c)
    return h, c
