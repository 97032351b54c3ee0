"""Every torch.nn recurrent module inside a model becomes ours, in place, with the same results.

The module object stays: only its class and its bookkeeping change. So parameters, optimisers that hold
them, hooks, device, dtype, training flag and sharing between parents are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from cellfuse.cells.gru import gru
from cellfuse.cells.lstm import lstm, projected_lstm
from cellfuse.errors import ConvertError
from cellfuse.nn.layer import Layer
from cellfuse.nn.one_step import GRUCell, LSTMCell, OneStep, RNNCell
from cellfuse.nn.rnn import GRU, LSTM, RNN, cell_of_nonlinearity

# torch.nn's class -> (ours, the cell of an instance)
TABLE: dict[type, tuple[type, Callable[[Any], Any]]] = {
    nn.RNN: (RNN, lambda module: cell_of_nonlinearity(module.nonlinearity)),
    nn.GRU: (GRU, lambda module: gru),
    nn.LSTM: (LSTM, lambda module: projected_lstm if module.proj_size else lstm),
    nn.RNNCell: (RNNCell, lambda module: cell_of_nonlinearity(module.nonlinearity)),
    nn.GRUCell: (GRUCell, lambda module: gru),
    nn.LSTMCell: (LSTMCell, lambda module: lstm),
}

# What torch's layers keep beside their parameters and ours do not.
_BOOKKEEPING = ("_flat_weights", "_flat_weight_refs", "_flat_weights_names", "_all_weights")


def convert(model: nn.Module, report: Callable[[str], None] | None = print) -> nn.Module:
    """Turn every torch.nn.RNN, GRU, LSTM and their one-step cells inside `model` into cellfuse's.

    Args:
        model: any module, or a recurrent layer itself; changed in place.
        report: called with one line for each recurrent module: what it became, or why it stays as it
            is. None for silence.

    Returns:
        `model`, the same object.

    Raises:
        ConvertError: `model` is not a torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise ConvertError(f"convert takes a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        line = _convert_one(module)
        if line and report is not None:
            report(f"{name or '(the model itself)'}: {line}")
    return model


def _convert_one(module: nn.Module) -> str:
    """Convert one module; a line for the report, or nothing if it is not recurrent."""
    plain = parametrize.type_before_parametrizations(module)
    if plain in TABLE:
        ours, cell_of = TABLE[plain]
        cell = cell_of(module)
        _change_class(module, plain, ours)
        module.cell = cell
        _add_attributes(module)
        return f"torch.nn.{plain.__name__} -> cellfuse.{ours.__name__}"
    if isinstance(module, Layer | OneStep):
        return f"{module._get_name()} stays: it is cellfuse's already"
    base = next((b for b in TABLE if isinstance(module, b)), None)
    if base is not None:
        return (
            f"{type(module).__name__} stays: it is a class of its own, derived from "
            f"torch.nn.{base.__name__}, and may compute something else; derive it from "
            f"cellfuse.{TABLE[base][0].__name__} instead"
        )
    if "quantized" in type(module).__module__ and "rnn" in type(module).__module__:
        return f"{type(module).__name__} stays: cellfuse has no quantised weights"
    return ""


def _change_class(module: nn.Module, plain: type, ours: type) -> None:
    """Give the object our class; a parametrised module keeps its own properties on top."""
    now = type(module)
    if now is plain:
        module.__class__ = ours
        return
    kept = {k: v for k, v in vars(now).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(now.__name__, (ours,), kept)


def _add_attributes(module: Any) -> None:
    for name in _BOOKKEEPING:
        module.__dict__.pop(name, None)
    module.num_heads = 1
    if isinstance(module, Layer):
        module.backend = "auto"
        module.bidirectional = bool(module.bidirectional)
        module._prepare()
    else:
        module.proj_size = 0
        module._lay_out()
