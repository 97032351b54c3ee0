"""Recurrent additive network: the candidate does not see the state."""

import torch

from cellfuse.cell import cell


@cell(gates="ifn", states="hc", source="Lee, Levy, Zettlemoyer 2017, arXiv:1705.07393, eq. 1")
def ran(gate, h, c):
    """One step of the recurrent additive network.

    i: input gate, f: forget gate, n: content (input part only).
    """
    i = torch.sigmoid(gate.i)
    f = torch.sigmoid(gate.f)
    c = i * gate.n.x + f * c
    h = torch.tanh(c)
    return h, c
