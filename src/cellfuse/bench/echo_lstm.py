"""A cell that is in no paper: what a user might invent, with the LSTM's products and one more state."""

import torch

from cellfuse.cell import cell


@cell(gates="ifgo", states="hcs", source="invented for the measurements")
def echo_lstm(gate, h, c, s):  # type: ignore[no-untyped-def]
    """One step of an LSTM whose cell state leaves a slowly fading echo s, which the output sees, too.

    i: input gate, f: forget gate, g: candidate, o: output gate.
    """
    i, f = torch.sigmoid(gate.i), torch.sigmoid(gate.f)
    c = f * c + i * torch.tanh(gate.g)
    s = 0.9 * s + 0.1 * c
    h = torch.sigmoid(gate.o) * torch.tanh(c + s)
    return h, c, s
