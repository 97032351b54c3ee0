"""Long short-term memory as torch.nn.LSTM has it, and with a projected hidden state."""

import torch

from cellfuse.cell import cell


@cell(
    gates="ifgo",
    states="hc",
    source="Hochreiter & Schmidhuber 1997; forget gate: Gers, Schmidhuber, Cummins 2000",
    aten="lstm",
)
def lstm(gate, h, c):
    """One step of the LSTM. i: input gate, f: forget gate, g: candidate, o: output gate."""
    i = torch.sigmoid(gate.i)
    f = torch.sigmoid(gate.f)
    g = torch.tanh(gate.g)
    o = torch.sigmoid(gate.o)
    c = f * c + i * g
    h = o * torch.tanh(c)
    return h, c


@cell(
    gates="ifgo",
    states="hc",
    projected="h",
    source="Sak, Senior, Beaufays 2014, arXiv:1402.1128, eq. 1-7",
    deviation="no peepholes and no second, non-recurrent projection, as torch.nn.LSTM(proj_size=P)",
    aten="lstm",
)
def projected_lstm(gate, h, c):
    """One step of the LSTM with h projected to P units.

    i: input gate, f: forget gate, g: candidate, o: output gate.
    """
    i = torch.sigmoid(gate.i)
    f = torch.sigmoid(gate.f)
    g = torch.tanh(gate.g)
    o = torch.sigmoid(gate.o)
    c = f * c + i * g
    h = gate.project(o * torch.tanh(c))
    return h, c
