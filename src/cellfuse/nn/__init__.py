"""Layers: parameters, the layer, one-step modules, conversion from torch.nn."""

from cellfuse.cell import _factories
from cellfuse.nn.convert import convert
from cellfuse.nn.layer import Layer
from cellfuse.nn.one_step import GRUCell, LSTMCell, OneStep, RNNCell
from cellfuse.nn.rnn import GRU, LSTM, RNN
from cellfuse.nn.why_not import why_not

_factories.update(layer=Layer, one_step=OneStep)

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "Layer",
    "OneStep",
    "RNNCell",
    "convert",
    "why_not",
]
