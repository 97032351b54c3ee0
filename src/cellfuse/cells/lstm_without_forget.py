"""The first LSTM, which cannot forget: its cell state only accumulates."""

import torch

from cellfuse.cell import cell


@cell(
    gates="igo",
    states="hc",
    source="Hochreiter & Schmidhuber 1997, Long short-term memory, Neural Computation 9(8)",
    deviation="tanh for the two squashing functions g and h, which have other ranges in the paper",
)
def lstm_without_forget(gate, h, c):
    """One step of the LSTM of 1997. i: input gate, g: candidate, o: output gate."""
    i = torch.sigmoid(gate.i)
    g = torch.tanh(gate.g)
    o = torch.sigmoid(gate.o)
    c = c + i * g
    h = o * torch.tanh(c)
    return h, c
