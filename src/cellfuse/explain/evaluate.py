"""Runs claims on real tensors, on a stand-in of the layer: the user's module is never called or changed."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from cellfuse.cells import CELLS
from cellfuse.explain.by_hand import ByHand
from cellfuse.explain.facts import Claim
from cellfuse.explain.progress import Watch
from cellfuse.explain.subject import Subject, cell_of

Names = dict[str, Any]


def stand_in(layer: nn.Module, **attributes: Any) -> Any:
    """A module with the same weights (not copies), without hooks, in eval mode, other attributes set."""
    made = object.__new__(type(layer))
    made.__dict__.update(layer.__dict__)
    for name, value in layer.__dict__.items():
        if name.startswith(("_forward_", "_backward_")) and isinstance(value, dict):
            made.__dict__[name] = OrderedDict()
    made.__dict__["training"] = False
    made.__dict__.update(attributes)
    return made


def swapped(layer: nn.Module) -> Any:
    """The layer with the other batch_first."""
    return stand_in(layer, batch_first=not layer.batch_first)


def in_training(layer: nn.Module) -> Any:
    """The layer after train()."""
    return stand_in(layer, training=True)


def with_dropout(layer: nn.Module) -> Any:
    """The layer with dropout=0.5, after train()."""
    return stand_in(layer, training=True, dropout=0.5)


def merged(layer: nn.Module) -> Any:
    """The layer with every bias_hh moved into bias_ih."""
    made = copy.deepcopy(layer)
    own = dict(made.named_parameters())
    for name, bias in own.items():
        if "bias_hh" in name:
            own[name.replace("bias_hh", "bias_ih")].data += bias.data
            bias.data.zero_()
    return made


def of_cell(name: str, layer: nn.Module) -> Any:
    """A layer of another cell with the same weights."""
    size: Any = {"num_layers": layer.num_layers, "bidirectional": layer.bidirectional, "bias": layer.bias}
    like = next(layer.parameters())
    size |= {"batch_first": layer.batch_first, "device": like.device, "dtype": like.dtype}
    made = CELLS[name].layer(layer.input_size, layer.hidden_size, **size)
    made.load_state_dict({key: getattr(layer, key) for key in made.state_dict()})
    return made.eval()


def close(value: Tensor, other: Tensor) -> bool:
    """Equal but for rounding, and of the same shape."""
    if value.shape != other.shape:
        return False
    tolerance = max(_rounding(value), _rounding(other))
    value, other = value.detach().double(), other.detach().double()
    largest = other.nan_to_num(posinf=0.0, neginf=0.0).abs().max().clamp_min(1.0)
    return torch.allclose(value, other, rtol=0.0, atol=tolerance * float(largest))


def _rounding(value: Tensor) -> float:
    """What a sequence's sums may differ by, relative to the largest value."""
    if value.is_cuda and value.dtype == torch.float32 and torch.backends.cudnn.allow_tf32:
        return 20 * 2.0**-10  # cuDNN multiplies in TF32 then
    one = torch.finfo(value.dtype).eps
    return {torch.float64: 1e9, torch.float32: 1e3}.get(value.dtype, 20) * one


def result_of(layer: Any, input: Any, hx: Any) -> tuple[Any, tuple[Tensor, ...]]:
    """(output, states) of one call; output is None where a one-step module returns its states alone."""
    result = layer(input) if hx is None else layer(input, hx)
    returns_states = not isinstance(layer, nn.RNNBase) and cell_of(layer).output_is_a_state
    output, states = (None, result) if returns_states else result
    return output, states if isinstance(states, tuple) else (states,)


def names_of(
    layer: Any, subject: Subject, input: Any, hx: Any, result: tuple, watch: Watch | None = None
) -> Names:
    """The names that a claim's code may use: tensors, the layer, and a few functions."""
    output, states = result
    ending = "1" if subject.is_step else "n"
    names: Names = {"torch": torch, "layer": layer, "input": input, "hx": hx, "close": close}
    names |= {"swapped": swapped, "in_training": in_training}
    names |= {"merged": merged, "with_dropout": with_dropout, "of_cell": of_cell}
    names |= {"pack_padded_sequence": pack_padded_sequence}
    names["by_hand"] = ByHand(subject, layer, input, hx, watch)
    names["output"] = output
    names |= {f"{s}_{ending}": value for s, value in zip(subject.cell.states, states, strict=True)}
    if isinstance(output, PackedSequence):
        names["padded"], names["lengths"] = pad_packed_sequence(output)  # type: ignore[arg-type]
    return names


def evaluate(claims: list[Claim], names: Names, watch: Watch | None = None) -> tuple[Claim, ...]:
    """The claims with `holds` set. They stay unset where the output has NaN, which equals nothing."""
    ends = [value for name, value in names.items() if name == "output" or name.endswith(("_n", "_1"))]
    if any(value.data.isnan().any() for value in ends if value is not None):
        return tuple(claims)
    made = []
    for place, claim in enumerate(claims):
        if watch:
            watch("statement", place + 1, len(claims))
        made.append(replace(claim, holds=run(claim, names)))
    return tuple(made)


def in_double(layer: Any, subject: Subject, input: Any, hx: Any) -> Names:
    """The same names in double precision, where rounding has less to grow from."""
    layer, input = stand_in(copy.deepcopy(layer).double()), input.double()
    hx = tuple(s.double() for s in hx) if isinstance(hx, tuple) else hx if hx is None else hx.double()
    return names_of(layer, subject, input, hx, result_of(layer, input, hx))


def run(claim: Claim, names: Names) -> bool:
    """The value of one claim's code."""
    return bool(eval(claim.code, dict(names)))
