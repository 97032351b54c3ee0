"""Elman's simple recurrent network, with tanh and with relu."""

import torch

from cellfuse.cell import cell


@cell(
    gates="n",
    source="Elman 1990, Finding structure in time, Cognitive Science 14",
    deviation="tanh where Elman has the logistic function, as torch.nn.RNN does",
    aten="rnn_tanh",
)
def rnn(gate, h):
    """One step of the simple recurrent network. n: the new state before its non-linearity."""
    return torch.tanh(gate.n)


@cell(
    gates="n",
    source="Elman 1990; relu as in Le, Jaitly, Hinton 2015, arXiv:1504.00941",
    deviation="the recurrent matrix does not start as the identity; torch.nn.RNN's start is used",
    aten="rnn_relu",
)
def rnn_relu(gate, h):
    """One step of the simple recurrent network with relu. n: the new state before relu."""
    return torch.relu(gate.n)
