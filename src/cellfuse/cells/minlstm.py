"""minLSTM: gates that see the input only and are scaled to add up to one: a linear recurrence."""

import torch

from cellfuse.cell import cell


@cell(gates="fin", source="Feng et al. 2024, arXiv:2410.01201, section 3.2")
def minlstm(gate, h):
    """One step of the minLSTM.

    f: forget gate, i: input gate, n: candidate, all from the input alone.
    """
    f, i = torch.sigmoid(gate.f.x), torch.sigmoid(gate.i.x)
    return (f * h + i * gate.n.x) / (f + i)
