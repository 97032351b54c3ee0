"""Checks of a layer's options, input and states. Types and leading words of the errors are torch.nn's;
what follows says what to write."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from cellfuse.cell import Cell
from cellfuse.errors import InputError, OptionError, OptionTypeError, ShapeError
from cellfuse.graph.masks import has_recurrent_product
from cellfuse.runtime.private import is_any_autocast_enabled


def check_type(name: str, value: Any, wanted: type) -> None:
    """Options have exactly the types torch.nn wants (True is not a size, 1 is not a bool)."""
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise OptionTypeError(
            f"{name} should be of type {wanted.__name__}, got: {type(value).__name__} ({value!r})"
        )


def check_cell(cell: Any) -> None:
    """The cell is one."""
    if not isinstance(cell, Cell):
        raise OptionTypeError(
            f"cell must be a cell, as the decorator cellfuse.cell makes them, got {type(cell).__name__} "
            f"({cell!r}). Write cellfuse.cells.gru for one of ours, or cellfuse.cells.find('gru')."
        )


def check_sizes(input_size: Any, hidden_size: Any, *, any_integer: bool = False) -> None:
    """input_size and hidden_size are positive: int itself, or any library's integer."""
    for name, value in (("input_size", input_size), ("hidden_size", hidden_size)):
        if any_integer:
            check_count(name, value)
        else:
            check_type(name, value, int)
        if value <= 0:
            raise OptionError(f"{name} must be greater than zero, got {value}")


def check_count(name: str, value: Any) -> None:
    """An integer of any library's."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise OptionTypeError(f"{name} should be of type int, got: {type(value).__name__} ({value!r})")


def check_layers(num_layers: Any) -> None:
    """num_layers is a positive integer."""
    check_count("num_layers", num_layers)
    if num_layers <= 0:
        raise OptionError(f"num_layers must be greater than zero, got {num_layers}")


def check_dropout(dropout: Any) -> None:
    """A probability."""
    if dropout is None or isinstance(dropout, complex | list | tuple | dict):
        raise OptionTypeError(f"dropout should be a number in range [0, 1], got {dropout!r}")
    if isinstance(dropout, bool) or not isinstance(dropout, Real) or not 0 <= float(dropout) <= 1:
        raise OptionError(
            "dropout should be a number in range [0, 1] representing the probability of an element "
            f"being zeroed, got {dropout!r}"
        )


def checked_zoneout(cell: Cell, zoneout: Any) -> dict[str, float]:
    """The probability of each state."""
    if isinstance(zoneout, Mapping):
        for state, share in zoneout.items():
            if state not in cell.states:
                raise OptionError(
                    f"zoneout={dict(zoneout)!r}: {cell.name} has no state {state!r}; its states are "
                    f"{', '.join(cell.states)}"
                )
            _check_share(f"zoneout of state {state}", share)
        shares = {state: float(zoneout.get(state, 0.0)) for state in cell.states}
    else:
        _check_share("zoneout", zoneout, ", or a mapping from names of states to such numbers")
        shares = dict.fromkeys(cell.states, float(zoneout))
    for state, share in shares.items():
        start = cell.initial.get(state, 0.0)
        if share and not math.isfinite(start):  # type: ignore[arg-type]
            others = {name: share for name in cell.states if name != state}
            raise OptionError(
                f"zoneout={zoneout!r}: state {state} of {cell.name} begins with {start}, which no mean with "
                f"another value leaves. Name the other states: zoneout={others}"
            )
    return shares


def check_recurrent_dropout(cell: Cell, recurrent_dropout: Any) -> None:
    """A probability, and something to act on."""
    _check_share("recurrent_dropout", recurrent_dropout)
    if recurrent_dropout and not has_recurrent_product(cell.step):
        raise OptionError(
            f"recurrent_dropout={recurrent_dropout!r}: the cell {cell.name} has no recurrent product to act "
            "on. Write zoneout= for noise in its state, or dropout= between layers."
        )


def _check_share(name: str, share: Any, other: str = "") -> None:
    """A probability below 1."""
    wanted = f"{name} should be a number in range [0, 1), without 1{other}"
    if isinstance(share, bool) or not isinstance(share, Real):
        raise OptionTypeError(f"{wanted}, got {type(share).__name__} ({share!r})")
    if not 0 <= float(share) < 1:
        raise OptionError(f"{wanted}, got {share!r}")


def check_projection(cell: Cell, hidden_size: int, proj_size: Any) -> None:
    """proj_size fits the cell."""
    check_count("proj_size", proj_size)
    if proj_size < 0:
        raise OptionError(
            f"proj_size should be a positive integer or zero to disable projections, got {proj_size}"
        )
    if proj_size >= hidden_size:
        raise OptionError(f"proj_size has to be smaller than hidden_size, got {proj_size} and {hidden_size}")
    if proj_size and not cell.projected:
        raise OptionError(
            "proj_size argument is only supported for LSTM, not RNN or GRU: "
            f"the cell {cell.name} has no projected state"
        )
    if cell.projected and not proj_size:
        raise OptionError(f"{cell.name} projects its state {cell.projected}: give proj_size=P, P >= 1")


def check_heads(cell: Cell, hidden_size: int, num_heads: Any) -> None:
    """num_heads fits the cell and divides hidden_size."""
    check_count("num_heads", num_heads)
    if num_heads != 1 and cell.recurrence != "blocks":
        raise OptionError(
            f"num_heads={num_heads}: the recurrence of {cell.name} is {cell.recurrence}; only cells "
            "with recurrence='blocks' have heads"
        )
    if num_heads < 1 or hidden_size % num_heads:
        raise OptionError(f"num_heads={num_heads} must divide hidden_size={hidden_size}")


def check_tensor(name: str, input: Any, *, or_packed: bool = True) -> None:
    """The input is a tensor."""
    if not isinstance(input, Tensor):
        wanted = "a Tensor or a PackedSequence" if or_packed else "a Tensor"
        raise OptionTypeError(f"{name}: input must be {wanted}, got {type(input).__name__}")


def check_dtype(input: Tensor, weight: Tensor) -> None:
    """The input has the dtype of the weights, or autocast will see to it; the device is the same."""
    if input.dtype != weight.dtype and not is_any_autocast_enabled():
        raise InputError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). Convert "
            f"input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
        )
    if input.device != weight.device:
        raise ShapeError(
            f"Input and parameter tensors are not at the same device, found input tensor at "
            f"{input.device} and parameter tensor at {weight.device}. Write input.to({weight.device!s})"
            " or model.to(...)"
        )


def check_features(name: str, input: Tensor, input_size: int, weight: Tensor, batch_first: bool) -> None:
    """The last axis is input_size wide."""
    given = input.size(-1)
    if given == input_size:
        return
    hint = ""
    if input.dim() == 3 and input_size in input.shape:
        axis = list(input.shape).index(input_size)
        hint = f" Axis {axis} is {input_size} long: is the input transposed?"
    elif input.dim() == 3 and not batch_first:
        hint = " If your data is [B, T, I], make the layer with batch_first=True."
    raise ShapeError(
        f"input.size(-1) must be equal to input_size. Expected {input_size}, got {given}. "
        f"{name}: the input is {list(input.shape)}; this layer was made with input_size={input_size} "
        f"(weight_ih_l0 is {list(weight.shape)}).{hint}"
    )


def state_tuple(cell: Cell, hx: Any, name: str) -> tuple[Tensor, ...]:
    """`hx` as one tensor per state; a single state may come bare, as in torch."""
    wanted = len(cell.states)
    if wanted == 1 and isinstance(hx, Tensor):
        return (hx,)
    if isinstance(hx, tuple | list) and len(hx) == wanted:
        for value in hx:
            if not isinstance(value, Tensor):
                raise OptionTypeError(f"{name}: hx holds a {type(value).__name__}, not a Tensor")
        return tuple(hx)
    given = type(hx).__name__ if not isinstance(hx, tuple | list) else f"{len(hx)} values"
    form = "h_0" if wanted == 1 else f"({', '.join(f'{state}_0' for state in cell.states)})"
    raise OptionTypeError(f"{name}: hx must be {form}, got {given}")


def check_states(
    states: tuple[Tensor, ...], shapes: list[tuple[int, ...]], cell: Cell, input: Tensor
) -> None:
    """Each initial state has its shape, and the input's dtype and device."""
    for state, shape, name in zip(states, shapes, cell.states, strict=True):
        if tuple(state.shape) != shape:
            which = "hidden size" if len(states) == 1 else f"hidden[{cell.states.index(name)}] size"
            text = f"Expected {which} {shape}, got {list(state.shape)}"
            raise ShapeError(f"{text}: state {name} is [L*D, B, width], and batch_first does not apply to it")
        if state.device != input.device:
            raise ShapeError(
                f"Input and hidden tensors are not at the same device, found input tensor at "
                f"{input.device} and hidden tensor at {state.device}"
            )
        if state.dtype != input.dtype and not is_any_autocast_enabled():
            raise ShapeError(
                f"Input and hidden tensors are not the same dtype, found input tensor with "
                f"{input.dtype} and hidden tensor with {state.dtype}. Write hx.to({input.dtype})"
            )


def checked_reset(reset: Any, shape: Sequence[int]) -> Tensor:
    """A mask of truths, one for each row of the input."""
    if not isinstance(reset, Tensor) or reset.dtype != torch.bool:
        given = reset.dtype if isinstance(reset, Tensor) else type(reset).__name__
        raise InputError(
            f"reset is {given}, expected a tensor of torch.bool {list(shape)}, true where a new sequence "
            "starts. Write reset.bool()."
        )
    if reset.shape != torch.Size(shape):
        raise ShapeError(
            f"reset is {list(reset.shape)}, expected {list(shape)}: it is laid out as the input, without its "
            "last axis"
        )
    return reset


def packed_reset(reset: Any, input: PackedSequence) -> Tensor:
    """The data of a mask that is packed as the input is."""
    if not isinstance(reset, PackedSequence):
        raise InputError(
            f"reset is a {type(reset).__name__}, but the input is a PackedSequence. Pack it alike: "
            "pack_padded_sequence(reset, lengths, ...) with the same arguments."
        )
    data = checked_reset(reset.data, input.data.shape[:1])
    pairs = zip(reset[1:3], input[1:3], strict=True)
    if not all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs):
        raise ShapeError("reset is packed otherwise than the input: their lengths or their orders differ")
    return data


def check_batch_sizes(batch_sizes: Tensor, input: Tensor) -> None:
    """A PackedSequence made by hand may lie about its own data."""
    if batch_sizes.numel() and int(batch_sizes.sum()) != len(input):
        raise ShapeError(
            f"PackedSequence: batch_sizes add up to {int(batch_sizes.sum())}, data has {len(input)} rows"
        )


def warn_of_idle_dropout(dropout: float, num_layers: int) -> str:
    """torch's warning for dropout= with one layer; empty if there is nothing to warn of."""
    if dropout == 0 or num_layers > 1:
        return ""
    return (
        "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
        f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}. "
        "For dropout on the output, put torch.nn.Dropout after the layer."
    )
