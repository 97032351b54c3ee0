"""minGRU: gates that see the input only, so that the recurrence is linear."""

import torch

from cellfuse.cell import cell


@cell(gates="zn", source="Feng et al. 2024, arXiv:2410.01201, section 3.1")
def mingru(gate, h):
    """One step of the minGRU. z: update gate, n: candidate, both from the input alone."""
    z = torch.sigmoid(gate.z.x)
    return (1 - z) * h + z * gate.n.x
