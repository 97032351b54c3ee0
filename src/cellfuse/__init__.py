"""cellfuse: write a recurrent cell's equation once; get a layer, its gradients and its explanation."""

from cellfuse import cells, errors
from cellfuse.cell import Cell, cell, per_gate, per_unit, scalar
from cellfuse.explain import explain
from cellfuse.nn import GRU, LSTM, RNN, GRUCell, Layer, LSTMCell, OneStep, RNNCell, convert, why_not

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Cell",
    "GRUCell",
    "LSTMCell",
    "Layer",
    "OneStep",
    "RNNCell",
    "cell",
    "cells",
    "convert",
    "errors",
    "explain",
    "per_gate",
    "per_unit",
    "scalar",
    "why_not",
]
