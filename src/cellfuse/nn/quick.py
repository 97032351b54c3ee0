"""The quick ways of a layer: whole sequences, and single steps without gradients, with memory made before.

Each returns None where the general way is to run, or to raise its error. Does not compute: see
`cellfuse.runtime.whole` and `cellfuse.runtime.step`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.runtime import choice
from cellfuse.runtime.aten import Operator
from cellfuse.runtime.direction import Direction
from cellfuse.runtime.fused import fused_step
from cellfuse.runtime.low_precision import LOW
from cellfuse.runtime.private import similarity
from cellfuse.runtime.step import Step, is_mode_active, is_of_memory, is_plain
from cellfuse.runtime.times import equal_times
from cellfuse.runtime.trained import Trained
from cellfuse.runtime.whole import Whole, is_plain_layout

if TYPE_CHECKING:
    from cellfuse.nn.layer import Layer, State

_DTYPES = (torch.float32, torch.float64, *LOW)  # of LOW torch's operator only
_MOST = 64  # sizes that a layer remembers
_MOST_STEPS = 4  # sizes for whose single steps it keeps memory
_NEW: Any = object()


class Quick:
    """What a layer needs for quick calls; made at the first one and not saved with the layer.

    Weights are looked up, checked and read at every call, so no change of theirs can be missed.
    """

    def __init__(self, layer: Layer) -> None:
        self.weights = [
            (k, name, full, slot.shape)
            for k, block in enumerate(layer._blocks())
            for (name, full), slot in zip(block.names, block.slots, strict=True)
        ]
        self._names = [full for _, _, full, _ in self.weights]
        # Of the last plain weights: their dtype, whether they are alike, whether one requires a gradient.
        self._plain: tuple[torch.dtype | None, Callable[..., bool], bool] = (None, lambda *_: False, False)
        # What was made for the calls of each size, the last used last; None: such calls are not quick.
        self.sizes: dict[Any, Any] = {}
        # For single steps by size, those that no thread is using.
        self.steps: dict[Any, list[Step]] = {}

    def of_size(self, key: Any, make: Callable[[], Any]) -> Any:
        """What was made for a size, which any thread may use."""
        made = self.sizes.pop(key, _NEW)
        if made is _NEW:
            made = make()
        self.sizes[key] = made
        while len(self.sizes) > _MOST:
            with suppress(KeyError, StopIteration, RuntimeError):  # another thread was quicker
                del self.sizes[next(iter(self.sizes))]
        return made

    def take(self, key: Any) -> Step | None:
        """What was made for single steps of a size and is free; must be given back."""
        free = self.steps.get(key)
        if free:
            with suppress(IndexError):  # another thread was quicker
                return free.pop()
        return None

    def give(self, key: Any, made: Step) -> None:
        """Take back what `take` has given, or what was made new."""
        free = self.steps.get(key)
        if free is None:
            if len(self.steps) >= _MOST_STEPS:
                self.steps = {}
            free = self.steps.setdefault(key, [])
        free.append(made)

    def plain_weights(self, layer: Layer, dtype: torch.dtype) -> tuple[list[Tensor], bool] | None:
        """The layer's weights as they are now, and whether one requires a gradient; None if one is not plain,
        or is computed by a property, as parametrizations are."""
        known, others = layer._parameters, layer._buffers
        found: list[Any] = [known[n] if n in known else others.get(n) for n in self._names]
        known_dtype, are_alike, requires_grad = self._plain
        if known_dtype is dtype and are_alike(*found):
            return found, requires_grad
        for (_, _, _, wanted), value in zip(self.weights, found, strict=True):
            if value is None or value.shape != wanted or not is_plain(value, dtype):
                return None
        requires_grad = any(value.requires_grad for value in found)
        self._plain = dtype, similarity(found), requires_grad
        return found, requires_grad


def of(layer: Layer) -> Quick | None:
    """What the layer keeps for quick calls; None if its class has a `forward` of its own."""
    quick = layer.__dict__.get("_quick")
    if quick is None:
        from cellfuse.nn.layer import Layer

        if type(layer).forward is not Layer.forward or "forward" in layer.__dict__:
            return None
        quick = layer.__dict__["_quick"] = Quick(layer)
    return quick


def sequence(layer: Layer, x: Tensor, hx: Any) -> tuple[Tensor, State] | None:
    """`Layer.forward` by one call of the kernel, or of torch's operator: x [T, B, I], or batch first."""
    if layer.recompute or is_mode_active() or (layer._masks is not None and layer.training):
        return None
    dtype, shape = x.dtype, x.shape
    if dtype not in _DTYPES or not is_of_memory(x, dtype):
        return None
    if len(shape) != 3 or shape[2] != layer.input_size or x.numel() == 0:
        return None
    if layer.batch_first:
        x = x.transpose(0, 1)
        shape = x.shape
    quick = of(layer)
    if quick is None:
        return None
    plain = quick.plain_weights(layer, dtype)
    if plain is None:
        return None
    weights, is_trained = plain
    states: Any = ()
    if hx is not None:
        states = (hx,) if isinstance(hx, Tensor) else hx
        if not isinstance(states, tuple | list) or len(states) != len(layer.cell.states):
            return None
        if not all(isinstance(value, Tensor) and is_of_memory(value, dtype) for value in states):
            return None
    is_trained = torch.is_grad_enabled() and (
        is_trained or x.requires_grad or any(value.requires_grad for value in states)
    )
    dropout = layer.dropout if layer.training else 0.0
    key = (is_trained, shape, dtype, torch.get_num_threads(), layer.backend, dropout)
    made = quick.of_size(key, lambda: _made(layer, x, is_trained))
    if made is None:
        return None
    if any(value.shape != wanted.shape for value, wanted in zip(states, made.initial, strict=False)):
        return None
    states = [value.contiguous() for value in states]
    output, finals = made.run(x, states, weights)
    if layer.batch_first:
        output = output.transpose(0, 1)
    return output, finals[0] if len(finals) == 1 else tuple(finals)


class _Stack:
    """The layers' calls, one after the other.

    Args:
        layers: of each layer; all of one kind.
        initial: the initial states where a call is given none, [L * D, B, width] each.
        dropout: between the layers.
    """

    def __init__(self, layers: Sequence[Whole | Trained], initial: Sequence[Tensor], dropout: float) -> None:
        self.layers, self.initial, self.dropout = layers, initial, dropout

    def run(
        self, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """(output, final states) as the layer gives them."""
        value = x.contiguous()
        depth = len(self.layers)
        if depth == 1:
            return self.layers[0].run(value, states, weights)
        directions, count, finals = len(self.initial[0]) // depth, len(weights) // depth, []
        for k, layer in enumerate(self.layers):
            if k and self.dropout:
                value = F.dropout(value, self.dropout, training=True)
            mine = [state.narrow(0, k * directions, directions) for state in states]
            value, made = layer.run(value, mine, weights[k * count : (k + 1) * count])
            finals.append(made)
        return value, [torch.cat(each) for each in zip(*finals, strict=True)]


def _made(layer: Layer, x: Tensor, is_trained: bool) -> _Stack | Operator | None:
    sizes = Sizes(layer.hidden_size, layer.proj_size, layer.num_heads)
    with torch.inference_mode(False), torch.no_grad():
        initial = layer.initial_states(x.shape[1], x)
        case = layer._case(x, initial)
        with torch.set_grad_enabled(is_trained):
            chosen = choice.choose(case, layer.backend)
        if chosen == "aten":
            return Operator(case)
        if chosen != "cpu" or x.dtype in LOW:
            return None
        fused = fused_step(case.cell, layer.bias, sizes, x.dtype)
        names = [name for name, _ in layer._blocks()[0].names]
        if not (Trained.is_possible(fused, names) if is_trained else is_plain_layout(fused)):
            return None
        flags = range(case.num_directions)
        times = [equal_times(x.shape[0], x.shape[1], bool(k)) for k in flags]
        made: list[Any] = []
        for k in range(layer.num_layers):
            features = x.shape[2] if k == 0 else len(times) * (layer.proj_size or layer.hidden_size)
            mine = [state[k * len(times) : (k + 1) * len(times)].clone() for state in initial]
            shapes = {name: value.shape for name, value in case.weights[k * len(times)].items()}
            if is_trained:
                each = [Direction(case.cell, sizes, layer.bias, bool(d), False, tuple(names)) for d in flags]
                made.append(Trained(each, fused, times, features, mine, shapes))
            else:
                made.append(Whole(fused, times, features, mine, shapes))
    return _Stack(made, initial, case.dropout)
