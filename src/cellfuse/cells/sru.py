"""Simple recurrent unit: each unit sees only its own past, and the input passes by on a highway."""

import torch

from cellfuse.cell import cell, per_unit


@cell(
    gates="nfrs",
    states="c",
    parameters={"v_f": per_unit(0.0), "v_r": per_unit(0.0)},
    source="Lei et al. 2018, arXiv:1709.02755v5, eq. 1-4",
    deviation="the highway carries W_s x + b_s, so that I and H may differ; the candidate has a bias",
)
def sru(gate, c, v_f, v_r):
    """One step of the SRU. Its output is no state.

    n: candidate, f: forget gate, r: reset gate, s: what passes by.
    """
    f = torch.sigmoid(gate.f.x + v_f * c)
    r = torch.sigmoid(gate.r.x + v_r * c)
    c = f * c + (1 - f) * gate.n.x
    return r * c + (1 - r) * gate.s.x, (c,)
