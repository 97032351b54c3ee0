"""LSTM whose gates see the cell state through one weight per unit."""

import torch

from cellfuse.cell import cell, per_unit


@cell(
    gates="ifgo",
    states="hc",
    parameters={"p_i": per_unit("uniform"), "p_f": per_unit("uniform"), "p_o": per_unit("uniform")},
    source="Gers, Schraudolph, Schmidhuber 2002, JMLR 3",
)
def peephole_lstm(gate, h, c, p_i, p_f, p_o):
    """One step of the LSTM with peepholes: i and f see the old cell state, o the new one.

    i: input gate, f: forget gate, g: candidate, o: output gate.
    """
    i = torch.sigmoid(gate.i + p_i * c)
    f = torch.sigmoid(gate.f + p_f * c)
    g = torch.tanh(gate.g)
    c = f * c + i * g
    o = torch.sigmoid(gate.o + p_o * c)
    h = o * torch.tanh(c)
    return h, c
