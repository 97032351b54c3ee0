"""sLSTM of xLSTM: exponential input gate, a normaliser state and a stabiliser state, in heads."""

import torch
import torch.nn.functional as F

from cellfuse.cell import cell


@cell(
    gates="ifzo",
    states="hcnm",
    recurrence="blocks",
    biases=("ih",),
    initial={"m": float("-inf")},
    source="Beck et al. 2024, arXiv:2405.04517, eq. 8-17, forget gate: sigmoid",
    deviation="m starts at minus infinity, so that the first step has i = 1 and cannot divide by zero",
)
def slstm(gate, h, c, n, m):
    """One step of the sLSTM; m keeps exp in range.

    i: input gate, f: forget gate, z: candidate, o: output gate.
    """
    log_f = F.logsigmoid(gate.f)
    m_new = torch.maximum(gate.i, log_f + m)
    i = torch.exp(gate.i - m_new)
    f = torch.exp(log_f + m - m_new)
    c = f * c + i * torch.tanh(gate.z)
    n = f * n + i
    h = torch.sigmoid(gate.o) * c / n
    return h, c, n, m_new
