"""One time step at a time without gradients: the quick way of `Layer.step`, and `Stepper`.

Does not compute: see `cellfuse.runtime.step`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.errors import BackendError, InputError, OptionError, ShapeError
from cellfuse.nn import arguments
from cellfuse.nn.quick import of
from cellfuse.runtime.fused import fused_step
from cellfuse.runtime.private import has_global_hooks
from cellfuse.runtime.step import Step, is_mode_active, is_plain

if TYPE_CHECKING:
    from cellfuse.nn.layer import Layer, State


def make(layer: Layer, batch: int, dtype: torch.dtype) -> Step:
    """The memory and tables of one step of a layer. batch: 0 for states without a batch axis."""
    sizes = Sizes(layer.hidden_size, layer.proj_size, layer.num_heads)
    fused = fused_step(layer._cell_of(False), layer.bias, sizes, dtype)
    names = [name for name, _ in layer._blocks()[0].names]
    with torch.inference_mode(False), torch.no_grad():
        initial = layer.initial_states(max(batch, 1), torch.empty(0, dtype=dtype, device="cpu"))
        if not batch:
            initial = tuple(value.squeeze(1) for value in initial)
        return Step(fused, initial, layer.num_layers, layer.input_size, names)


def _new(layer: Layer, x: Tensor) -> Step | None:
    """What `make` makes for x; None if x does not fit."""
    dtype, shape = x.dtype, x.shape
    if dtype not in (torch.float32, torch.float64) or not is_plain(x, dtype) or len(shape) not in (1, 2):
        return None
    if shape[-1] != layer.input_size or 0 in shape:
        return None
    return make(layer, shape[0] if len(shape) == 2 else 0, dtype)


def step(layer: Layer, x: Tensor, state: Any) -> tuple[Tensor, State] | None:
    """`Layer.step` by the kernel; None where the general way is to run, or to raise its error."""
    if is_mode_active() or type(x) is not Tensor or layer.backend not in ("auto", "cpu"):
        return None
    if layer._forward_hooks or layer._forward_pre_hooks or has_global_hooks():
        return None
    if layer._backward_hooks or layer._backward_pre_hooks:
        return None
    if layer.training and (layer.dropout or layer._masks is not None):
        return None
    quick = of(layer)
    if quick is None:
        return None
    dtype, is_grad = x.dtype, torch.is_grad_enabled()
    plain = quick.plain_weights(layer, dtype)
    if plain is None or (is_grad and plain[1]):
        return None
    key = x.shape, dtype
    made = quick.take(key) or _new(layer, x)
    if made is None:
        return None
    try:
        before = made.states(x, state, is_grad)
        if before is None:
            return None
        made.bind(plain[0])
        y, after = made.run(x, before)
    finally:
        quick.give(key, made)
    return y, after[0] if len(after) == 1 else tuple(after)


class Stepper:
    """A stack of layers that remembers its state: one time step a call, without gradient. For streaming.

    Made by `layer.stepper(batch_size)`, which says what it does. Not for several threads at a time.

    Attributes:
        batch_size: B.
    """

    def __init__(self, layer: Layer, batch_size: int) -> None:
        arguments.check_type("batch_size", batch_size, int)
        if batch_size < 1:
            raise OptionError(f"batch_size must be greater than zero, got {batch_size}")
        self._name = layer._get_name()
        if layer.bidirectional:
            raise InputError(
                f"{self._name}.stepper: a bidirectional layer cannot run step by step, because its "
                "reverse direction starts at the last time step. Make it with bidirectional=False."
            )
        weights = [value for row in layer.all_weights for value in row]
        like = weights[0] if weights else torch.empty(0)
        if like.device.type != "cpu" or like.dtype not in (torch.float32, torch.float64):
            raise BackendError(
                f"{self._name}.stepper: its kernel runs float32 and float64 on the CPU; the weights are "
                f"{like.dtype} on {like.device}. Use layer.step(x_t, state) there."
            )
        self.batch_size = batch_size
        self._layer, self._input_size, self._dtype = layer, layer.input_size, like.dtype
        with torch.inference_mode(False), torch.no_grad():
            self._step = make(layer, batch_size, self._dtype)
            self._zero = self._step.initial
            self._states = [value.clone() for value in self._zero]
            self._next = [torch.empty_like(value) for value in self._zero]
        self._shape = torch.Size((batch_size, self._input_size))
        self.refresh()

    def refresh(self) -> None:
        """Copy the layer's weights of now; until then the ones of the last time are used."""
        layer = self._layer
        with torch.inference_mode(False), torch.no_grad():
            self._copies = []
            for block in layer._blocks():
                for (_, full), slot in zip(block.names, block.slots, strict=True):
                    value = getattr(layer, full).detach()
                    if value.dtype != self._dtype or value.device.type != "cpu" or value.shape != slot.shape:
                        raise BackendError(
                            f"{self._name}.stepper: {full} is now {value.dtype} {list(value.shape)} on "
                            f"{value.device}, but this stepper was made for {self._dtype} "
                            f"{list(slot.shape)} on cpu. Make a new one: layer.stepper(batch_size)."
                        )
                    self._copies.append(value.clone(memory_format=torch.contiguous_format))
            self._step.bind(self._copies)

    @property
    def state(self) -> State:
        """A copy of the states, as `Layer.step` takes and returns them: [L, B, H] each."""
        made = tuple(value.clone() for value in self._states)
        return made if len(made) > 1 else made[0]

    @state.setter
    def state(self, value: State) -> None:
        given = arguments.state_tuple(self._layer.cell, value, self._name)
        shapes = self._layer._state_shapes(self.batch_size)
        arguments.check_states(given, shapes, self._layer.cell, self._zero[0])
        with torch.no_grad():
            for mine, theirs in zip(self._states, given, strict=True):
                mine.copy_(theirs)

    def reset(self, rows: Any = None) -> None:
        """Put the initial states back: of all sequences, or of those that `rows` picks from the batch.

        Args:
            rows: an index, slice, list of indices, or a tensor of indices or truths.
        """
        with torch.no_grad():
            for state, zero in zip(self._states, self._zero, strict=True):
                if rows is None:
                    state.copy_(zero)
                else:
                    state[:, rows] = zero[:, rows]

    def __call__(self, x_t: Tensor) -> tuple[Tensor, State]:
        """(y_t, state) of the next time step, in memory of their own. x_t: [B, I]."""
        if type(x_t) is not Tensor or x_t.shape != self._shape or not is_plain(x_t, self._dtype):
            x_t = self._checked(x_t)
        before, after = self._states, self._next
        y, _ = self._step.run(x_t, before, after)
        self._states, self._next = after, before
        if len(after) == 1:
            return y, after[0].clone()
        return y, tuple([state.clone() for state in after])

    def _checked(self, x: Any) -> Tensor:
        """The input as plain memory, or an error that says what is wrong with it."""
        arguments.check_tensor(f"{self._name}.stepper", x)
        if x.shape != self._shape:
            raise ShapeError(
                f"{self._name}.stepper: expected x_t {list(self._shape)}, got {list(x.shape)}. This stepper "
                f"was made with batch_size={self.batch_size}."
            )
        if x.dtype != self._dtype or x.device.type != "cpu":
            raise InputError(
                f"{self._name}.stepper: x_t is {x.dtype} on {x.device}, the weights were {self._dtype} on "
                f"cpu. Write x_t.to('cpu', {self._dtype})."
            )
        plain = x.detach().resolve_neg().contiguous()
        if not is_plain(plain, self._dtype):
            raise InputError(
                f"{self._name}.stepper: x_t is a {type(x).__name__} of layout {x.layout}, not plain memory"
            )
        return plain

    def __repr__(self) -> str:
        return f"{self._name}.stepper(batch_size={self.batch_size})"
