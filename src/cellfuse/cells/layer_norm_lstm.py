"""LSTM with layer normalisation of both products and of the cell state's way out."""

import torch

from cellfuse.cell import cell, per_gate, per_unit


def normalise(values):
    """Values of several gates, normalised together over all their units."""
    count = len(values)
    mean = sum(v.mean(-1, keepdim=True) for v in values) / count
    centred = [v - mean for v in values]
    variance = sum((v * v).mean(-1, keepdim=True) for v in centred) / count
    scale = torch.rsqrt(variance + 1e-5)
    return [v * scale for v in centred]


@cell(
    gates="ifgo",
    states="hc",
    biases=(),
    parameters={
        "gain_x": per_gate(1.0),
        "gain_h": per_gate(1.0),
        "shift": per_gate(0.0, is_bias=True),
        "gain_c": per_unit(1.0),
        "shift_c": per_unit(0.0, is_bias=True),
    },
    source="Ba, Kiros, Hinton 2016, arXiv:1607.06450, supplementary eq. 20-22",
    deviation="the two shifts and the bias of the pre-activation, which only add up, are one parameter",
)
def layer_norm_lstm(gate, h, c, gain_x, gain_h, shift, gain_c, shift_c):
    """One step of the layer-normalised LSTM. The cell state is carried without normalisation.

    i: input gate, f: forget gate, g: candidate, o: output gate.
    """
    xi, xf, xg, xo = normalise([gate.i.x, gate.f.x, gate.g.x, gate.o.x])
    hi, hf, hg, ho = normalise([gate.i.h, gate.f.h, gate.g.h, gate.o.h])
    i = torch.sigmoid(gain_x.i * xi + gain_h.i * hi + shift.i)
    f = torch.sigmoid(gain_x.f * xf + gain_h.f * hf + shift.f)
    g = torch.tanh(gain_x.g * xg + gain_h.g * hg + shift.g)
    o = torch.sigmoid(gain_x.o * xo + gain_h.o * ho + shift.o)
    c = f * c + i * g
    (nc,) = normalise([c])
    h = o * torch.tanh(gain_c * nc + shift_c)
    return h, c
