"""Minimal gated unit: a GRU with one gate."""

import torch

from cellfuse.cell import cell


@cell(gates="fn", source="Zhou et al. 2016, arXiv:1603.09420, eq. 6")
def mgu(gate, h):
    """One step of the minimal gated unit. f: forget gate, n: candidate."""
    f = torch.sigmoid(gate.f)
    n = torch.tanh(gate.n.x + gate.n.of(f * h))
    return (1 - f) * h + f * n
