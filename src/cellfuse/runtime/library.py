"""The torch operators of the kernels, with rules for every transform: one node in every graph.

Torch's own `custom_op` with `register_autograd` would return zeros as forward-mode derivatives, without an
error, and fails under torch.func; so there are Autograd kernels of ours. Where a transform has no kernel of
its own (forward-mode, higher orders, torch.func inside torch.compile) the derivative is the formula's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cellfuse.errors import BackendError
from cellfuse.graph.masks import is_mask
from cellfuse.masked import has_masks
from cellfuse.runtime import operands
from cellfuse.runtime.direction import Call, Direction, direction_of
from cellfuse.runtime.direction import backward as run_backward
from cellfuse.runtime.direction import forward as run_forward
from cellfuse.runtime.fused import Kept
from cellfuse.runtime.private import (
    below_autograd,
    is_batched,
    is_forward_ad_active,
    is_functorch_active,
)

_library = torch.library.Library("cellfuse", "DEF")
# direction: `Direction.text`. kept: what the forward loop left, the results of "forward" behind the states.
_library.define(
    "forward(Tensor x, Tensor[] states, Tensor[] weights, Tensor? batch_sizes, str direction, bool keep) "
    "-> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "backward(Tensor[] gradients, Tensor x, Tensor[] states, Tensor[] weights, Tensor? batch_sizes, "
    "Tensor[] kept, str direction) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
forward = torch.ops.cellfuse.forward.default
backward = torch.ops.cellfuse.backward.default

Lists = tuple[Tensor, list[Tensor], list[Tensor]]


def _lists(direction: Direction, values: Sequence[Tensor]) -> Lists:
    """x, states, weights as the operators take them."""
    count = 1 + len(direction.cell.states)
    return values[0], list(values[1:count]), list(values[count:])


# what the operators compute


def _forward(
    x: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    direction: str,
    keep: bool,
) -> list[Tensor]:
    made, values = direction_of(direction), (x, *states, *weights)
    operands.check(made, x, states, weights, batch_sizes)
    times = made.times(values, batch_sizes)
    calls = [(made, times)]
    with torch.cuda.device_of(x):  # a compiled graph's calls do not set it
        [((output, *finals), kept)] = run_forward(calls, [values], keep=keep, is_operator=True)
    if kept is None:
        return [output.contiguous(), *finals]
    # No two results of an operator may share memory.
    output = output.clone(memory_format=torch.contiguous_format)
    results = [output, *finals, *kept.slabs, *(kept.buffers[name] for name in made.buffers(made.kernel(x)))]
    promised = made.shapes(values, batch_sizes, True)
    return [value.to(dtype) for value, (_, dtype) in zip(results, promised, strict=True)]


def _forward_fake(x, states, weights, batch_sizes, direction, keep):  # type: ignore[no-untyped-def]
    shapes = direction_of(direction).shapes((x, *states, *weights), batch_sizes, keep)
    return [x.new_empty(shape, dtype=dtype) for shape, dtype in shapes]


def _backward(
    gradients: list[Tensor],
    x: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    kept: list[Tensor],
    direction: str,
) -> list[Tensor]:
    made, values = direction_of(direction), (x, *states, *weights)
    operands.check(made, x, states, weights, batch_sizes)
    operands.check_backward(made, values, batch_sizes, gradients, kept)
    times, dense = made.times(values, batch_sizes), [value.contiguous() for value in kept]
    names = made.buffers(made.kernel(x))
    found = Kept(dense[: len(states)], dict(zip(names, dense[len(states) :], strict=True)))
    calls = [(made, times)]
    with torch.cuda.device_of(x):
        [result] = run_backward(calls, [gradients], [values], [found], is_operator=True)
    return result  # type: ignore[return-value]


def _backward_fake(gradients, x, states, weights, *_: Any):  # type: ignore[no-untyped-def]
    return [x.new_empty(value.shape) for value in (x, *states, *weights)]


# derivatives


class _Direct(torch.autograd.Function):
    """The kernel outside of transforms, for the directions of a layer: kept values need not be results.

    (calls, x, *states and weights of each direction)
    """

    @staticmethod
    def forward(ctx: Any, calls: Sequence[Call], *values: Tensor) -> tuple[Tensor, ...]:
        ctx.calls = calls
        made = run_forward(calls, _of_each(calls, values), keep=True)
        found = [kept for _, kept in made if kept is not None]
        ctx.buffers, ctx.count = [tuple(kept.buffers) for kept in found], len(values)
        saved = [value for kept in found for value in (*kept.slabs, *kept.buffers.values())]
        ctx.save_for_backward(*values, *saved)
        return tuple(value for results, _ in made for value in results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        calls, saved, needs_x = ctx.calls, list(ctx.saved_tensors), ctx.needs_input_grad[1]
        values, rest = _of_each(calls, saved[: ctx.count]), saved[ctx.count :]
        given, kept, at = [], [], 0
        for (direction, _), names in zip(calls, ctx.buffers, strict=True):
            states = len(direction.cell.states)
            given.append(gradients[at : at + 1 + states])
            at += 1 + states
            slabs, rest = rest[:states], rest[states:]
            kept.append(Kept(slabs, dict(zip(names, rest, strict=False))))
            rest = rest[len(names) :]
        if torch.is_grad_enabled() or _is_transformed(gradients):
            four = zip(calls, given, values, kept, strict=True)
            made: Sequence[Sequence[Tensor | None]] = [_direct_gradients(*each) for each in four]
        else:
            made = run_backward(calls, given, values, kept, needs_x=needs_x)
        parts = [part for part, *_ in made if part is not None]
        dx = sum(parts[1:], parts[0]) if parts else None
        return None, dx, *(value for each in made for value in each[1:])


def _of_each(calls: Sequence[Call], values: Sequence[Tensor]) -> list[list[Tensor]]:
    """(x, *states, *weights) of each direction from (x, *states and weights of each)."""
    made, at = [], 1
    for direction, _ in calls:
        count = len(direction.cell.states) + len(direction.names)
        made.append([values[0], *values[at : at + count]])
        at += count
    return made


def _direct_gradients(
    call: Call, gradients: Sequence[Tensor], values: Sequence[Tensor], kept: Kept
) -> Sequence[Tensor | None]:
    """The gradients of one direction's values, which can be differentiated again."""
    direction, times = call
    names = direction.buffers(direction.kernel(values[0]))
    if names != list(kept.buffers) or direction.backend != "cpu":
        return direction.formula_gradients(gradients, values, times.batch_sizes)
    made = (*kept.slabs, *kept.buffers.values())
    return _gradients(direction, gradients, values, times.batch_sizes, made)


class _Compiled(torch.autograd.Function):
    """The operator inside a graph. (text, batch_sizes, *values); kept values are results, too."""

    @staticmethod
    def forward(ctx: Any, text: str, batch_sizes: Tensor | None, *values: Tensor) -> tuple[Tensor, ...]:
        with below_autograd():
            made = forward(*_lists(direction_of(text), values), batch_sizes, text, True)
        count = 1 + len(direction_of(text).cell.states)
        ctx.text, ctx.count = text, len(values)
        ctx.save_for_backward(batch_sizes, *values, *made[count:])
        ctx.mark_non_differentiable(*made[count:])
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        direction, (batch_sizes, *saved) = direction_of(ctx.text), ctx.saved_tensors
        values, kept = saved[: ctx.count], saved[ctx.count :]
        wanted = gradients[: 1 + len(direction.cell.states)]
        if is_functorch_active() or is_forward_ad_active():
            return None, None, *_gradients(direction, wanted, values, batch_sizes, kept)
        return (
            None,
            None,
            *backward(list(wanted), *_lists(direction, values), batch_sizes, list(kept), ctx.text),
        )


class _Transformed(torch.autograd.Function):
    """The kernel under torch.func. (direction, batch_sizes, *values); kept values are results, too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(direction: Direction, batch_sizes: Tensor | None, *values: Tensor) -> tuple[Tensor, ...]:
        with below_autograd():
            return tuple(forward(*_lists(direction, values), batch_sizes, direction.text, True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        direction, batch_sizes, *values = inputs
        ctx.direction, ctx.count = direction, len(values)
        ctx.has_sizes = batch_sizes is not None
        sizes = (batch_sizes,) if ctx.has_sizes else ()
        ctx.save_for_backward(*sizes, *values, *output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        direction, saved = ctx.direction, list(ctx.saved_tensors)
        batch_sizes = saved.pop(0) if ctx.has_sizes else None
        values, made = saved[: ctx.count], saved[ctx.count :]
        count = 1 + len(direction.cell.states)
        return None, None, *_gradients(direction, gradients[:count], values, batch_sizes, made[count:])


class _Gradients(torch.autograd.Function):
    """The backward kernel, whose own derivatives are the formula's.

    (direction, batch_sizes, number of gradients, number of values, *gradients, *values, *kept)
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        direction: Direction, batch_sizes: Tensor | None, given: int, count: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        values = tensors[given : given + count]
        lists = (list(tensors[:given]), *_lists(direction, values), batch_sizes)
        with below_autograd():
            return tuple(backward(*lists, list(tensors[given + count :]), direction.text))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        ctx.direction, batch_sizes, ctx.given, ctx.count, *tensors = inputs
        ctx.kept = len(tensors) - ctx.given - ctx.count
        ctx.has_sizes = batch_sizes is not None
        sizes = (batch_sizes,) if ctx.has_sizes else ()
        ctx.save_for_backward(*sizes, *tensors[: ctx.given + ctx.count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        direction, saved, given = ctx.direction, list(ctx.saved_tensors), ctx.given
        batch_sizes = saved.pop(0) if ctx.has_sizes else None
        pull = torch.func.vjp(
            lambda *v: tuple(direction.formula_gradients(v[:given], v[given:], batch_sizes)), *saved
        )[1]
        return None, None, None, None, *pull(gradients), *[None] * ctx.kept


def _gradients(
    direction: Direction,
    gradients: Sequence[Tensor],
    values: Sequence[Tensor],
    batch_sizes: Tensor | None,
    kept: Sequence[Tensor],
) -> Sequence[Tensor]:
    """The gradients of the values, which can be differentiated again."""
    is_old_vmap = any(map(is_batched, gradients)) and not is_functorch_active()
    if is_forward_ad_active() or is_old_vmap:  # of autograd.grad(is_grads_batched=True)
        return direction.formula_gradients(gradients, values, batch_sizes)
    counts = len(gradients), len(values)
    made: tuple[Tensor, ...] = _Gradients.apply(direction, batch_sizes, *counts, *gradients, *values, *kept)
    return made


def direct(calls: Sequence[Call], values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """(output, *final states) of each direction with a gradient, by the kernel without an operator.

    values: x, and the states and weights of each direction.
    """
    made: tuple[Tensor, ...] = _Direct.apply(tuple(calls), *values)
    return made


def transformed(
    direction: Direction, batch_sizes: Tensor | None, values: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """(output, *final states) under torch.func's transforms but those of forward mode."""
    made: tuple[Tensor, ...] = _Transformed.apply(direction, batch_sizes, *values)
    return made[: 1 + len(direction.cell.states)]


def _is_transformed(gradients: Sequence[Tensor]) -> bool:
    return is_functorch_active() or is_forward_ad_active() or any(map(is_batched, gradients))


def _forward_autograd(x, states, weights, batch_sizes, direction, keep):  # type: ignore[no-untyped-def]
    values = (x, *states, *weights)
    for name, weight in zip(direction_of(direction).names, weights, strict=False):  # counted later
        if weight.requires_grad and is_mask(name):
            raise BackendError(f"cellfuse::forward: the mask {name} requires a gradient; masks have none")
    if is_functorch_active() or is_forward_ad_active():
        if keep:
            raise BackendError("cellfuse::forward with keep=True has no derivative of its own")
        return list(direction_of(direction).formula(values, batch_sizes))
    if torch.is_grad_enabled() and any(value.requires_grad for value in values):
        made = list(_Compiled.apply(direction, batch_sizes, *values))
        return made if keep else made[: 1 + len(states)]
    with below_autograd():
        return forward(x, states, weights, batch_sizes, direction, keep)


def _backward_autograd(gradients, x, states, weights, batch_sizes, kept, direction):  # type: ignore[no-untyped-def]
    values, made = (x, *states, *weights), direction_of(direction)
    if is_functorch_active() or is_forward_ad_active():
        return made.formula_gradients(gradients, values, batch_sizes)
    if torch.is_grad_enabled() and any(value.requires_grad for value in (*gradients, *values)):
        return list(_gradients(made, gradients, values, batch_sizes, kept))
    with below_autograd():
        return backward(gradients, x, states, weights, batch_sizes, kept, direction)


# vmap


def _forward_vmap(info, in_dims, x, states, weights, batch_sizes, direction, keep):  # type: ignore[no-untyped-def]
    x_dim, state_dims, weight_dims, sizes_dim, *_ = in_dims
    count = info.batch_size
    if has_masks(direction_of(direction).cell):  # theirs are B rows, not N * B
        return _one_by_one(forward, info, in_dims, x, states, weights, batch_sizes, direction, keep)
    if sizes_dim is not None or batch_sizes is not None or any(d is not None for d in weight_dims):
        return _one_by_one(forward, info, in_dims, x, states, weights, batch_sizes, direction, keep)
    # With the same weights they are one batch: [T, N * B, I].
    x = x.movedim(x_dim, 1) if x_dim is not None else x.unsqueeze(1).expand(-1, count, -1, -1)
    states = [
        state.movedim(dim, 0) if dim is not None else state.expand(count, -1, -1)
        for state, dim in zip(states, state_dims, strict=True)
    ]
    steps, batch = x.shape[0], x.shape[2]
    joined = forward(x.flatten(1, 2), [s.flatten(0, 1) for s in states], weights, None, direction, keep)
    number = 1 + len(states)
    made = [
        joined[0].unflatten(1, (count, batch)),
        *(v.unflatten(0, (count, batch)) for v in joined[1:number]),
    ]
    dims = [1, *[0] * len(states)]
    for k, value in enumerate(joined[number:]):
        if k < len(states):  # the slabs [T + 1, N * B, width]
            made.append(value.unflatten(1, (count, batch)))
            dims.append(1)
        else:
            rows = value.unflatten(0, (steps, count, batch)).movedim(1, 0)
            made.append(rows.reshape(count, steps * batch, value.shape[-1]))
            dims.append(0)
    return made, dims


def _backward_vmap(info, in_dims, *arguments):  # type: ignore[no-untyped-def]
    return _one_by_one(backward, info, in_dims, *arguments)


def _one_by_one(operator, info, in_dims, *arguments):  # type: ignore[no-untyped-def]
    def taken(value: Any, dim: Any, k: int) -> Any:
        if isinstance(value, list | tuple):
            return [taken(v, d, k) for v, d in zip(value, dim, strict=True)]
        return value.select(dim, k) if isinstance(value, Tensor) and dim is not None else value

    pairs = list(zip(arguments, in_dims, strict=True))
    made = [operator(*(taken(v, d, k) for v, d in pairs)) for k in range(info.batch_size)]
    stacked = [torch.stack(each) for each in zip(*made, strict=True)]
    return stacked, [0] * len(stacked)


for _key in ("CPU", "CUDA"):
    _library.impl("forward", _forward, _key)
    _library.impl("backward", _backward, _key)
_library.impl("forward", _forward_autograd, "Autograd")
_library.impl("backward", _backward_autograd, "Autograd")
torch.library.register_fake("cellfuse::forward", _forward_fake, lib=_library)
torch.library.register_fake("cellfuse::backward", _backward_fake, lib=_library)
torch.library.register_vmap("cellfuse::forward", _forward_vmap, lib=_library)
torch.library.register_vmap("cellfuse::backward", _backward_vmap, lib=_library)
