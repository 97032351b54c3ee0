"""Cells that no paper has, each with a form that the registry lacks."""

import torch
import torch.nn.functional as F

import cellfuse as cf


@cf.cell(gates="n", states="h", source="none: a cell of the tests")
def leaky(gate, h):
    """Output that is no state."""
    h = 0.9 * h + torch.tanh(gate.n)
    return 2 * h, (h,)


@cf.cell(
    gates=("in_gate", "out_gate"),
    states=("h", "memory"),
    parameters={"rate": cf.scalar(0.5), "scale": cf.per_unit((0.5, 1.5))},
    source="none: a cell of the tests",
)
def wordy(gate, h, memory, rate, scale):
    """A product of the second state; a number and a value per unit that are learned."""
    i = torch.sigmoid(gate.in_gate.of(memory) + gate.in_gate.x)
    memory = rate * memory + i * scale
    return torch.tanh(gate.out_gate) * memory, memory


@cf.cell(gates="asv", states="hk", source="none: a cell of the tests")
def focus(gate, h, k):
    """Softmax and cumulative sum over the units, a maximum, a state that passes through another."""
    a = torch.softmax(gate.a, -1)
    k = 0.5 * k + torch.cumsum(a, -1) * torch.sigmoid(gate.s)
    h = torch.maximum(torch.tanh(gate.v.x + gate.v.of(k)), 0.1 * h) / (1 + k.abs().amax(-1, keepdim=True))
    return h, k


@cf.cell(gates="abc", states="hk", source="none: a cell of the tests")
def tangled(gate, h, k):
    """Sums of products, swapped states, a state that is set to a number, products of new values."""
    m = gate.a.h + gate.b.of(k) + gate.c.x
    n = gate.c.of(torch.sin(m) * h) + gate.a.x * gate.b.x
    return torch.where(n > m, torch.exp(-n * n), F.softplus(m) * 0.1), h + 0 * k


@cf.cell(gates="n", states="hc", projected="h", source="none: a cell of the tests")
def projecting(gate, h, c):
    """A projected output of a state that a linear map carries."""
    c = 0.5 * c + torch.erf(gate.n) * torch.cos(gate.n.x)
    return gate.project(c * c) + gate.project(c), c


CELLS = {cell.name: cell for cell in (leaky, wordy, focus, tangled, projecting)}
OPTIONS = {"projecting": {"proj_size": 3}}
