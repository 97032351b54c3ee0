"""Gated recurrent unit, in the two published variants: reset after or before the product."""

import torch

from cellfuse.cell import cell


@cell(
    gates="rzn",
    source="Cho et al. 2014, arXiv:1406.1078, eq. 5-8",
    deviation="r multiplies R_n h + d_n, not h, as torch.nn.GRU and cuDNN do: one product a step, not two",
    aten="gru",
)
def gru(gate, h):
    """One step of the gated recurrent unit. r: reset gate, z: update gate, n: candidate."""
    r = torch.sigmoid(gate.r)
    z = torch.sigmoid(gate.z)
    n = torch.tanh(gate.n.x + r * gate.n.h)
    return (1 - z) * n + z * h


@cell(
    gates="rzn",
    source="Cho et al. 2014, arXiv:1406.1078, eq. 5-8; Chung et al. 2014, arXiv:1412.3555",
)
def gru_reset_before(gate, h):
    """One step of the gated recurrent unit as published. r: reset gate, z: update gate, n: candidate."""
    r = torch.sigmoid(gate.r)
    z = torch.sigmoid(gate.z)
    n = torch.tanh(gate.n.x + gate.n.of(r * h))
    return (1 - z) * n + z * h
