"""One direction of one layer as a differentiable function: compiled kernels, with autograd around them.

Derivatives of derivatives are those of the eager backend's formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cellfuse.runtime import eager
from cellfuse.runtime.case import Case, Weights
from cellfuse.runtime.fused import Kept
from cellfuse.runtime.private import is_batched
from cellfuse.runtime.times import Times


class Runner(Protocol):
    """A cell's step over time, compiled for given sizes: `fused.Fused`, or what a GPU has instead."""

    def forward(
        self, x: Tensor, times: Times, states: list[Tensor], weights: Weights, *, keep: bool
    ) -> tuple[Tensor, list[Tensor], Kept | None]:
        """(output, final states, what `backward` reads), see `Fused.forward`."""

    def backward(
        self,
        x: Tensor,
        times: Times,
        weights: Weights,
        kept: Kept,
        output_gradient: Tensor,
        state_gradients: list[Tensor],
        *,
        needs_x: bool,
    ) -> tuple[Tensor | None, list[Tensor], dict[str, Tensor]]:
        """Gradients of x (unless it needs none), of the initial states and of each weight."""


@dataclass(frozen=True)
class Call:
    """What is not a tensor in one call, and the names of what is.

    Attributes:
        fused: the compiled step.
        case: the case of the whole layer; its tensors are not used.
        times: the time steps.
        names: of the weights, in order.
    """

    fused: Runner
    case: Case
    times: Times
    names: tuple[str, ...]


def run(
    call: Call, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """(output, final states) of one direction. x: [T, B, I], or [N, I] if packed."""
    values = (x, *states, *weights)
    if torch.is_grad_enabled() and any(value.requires_grad for value in values):
        output, *finals = _Function.apply(call, *values)
        return output, finals
    output, finals, _ = _forward(call, values, keep=False)
    return output, finals


def _split(call: Call, values: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    count = 1 + len(call.case.cell.states)
    return values[0], list(values[1:count]), dict(zip(call.names, values[count:], strict=True))


def _rows(x: Tensor) -> Tensor:
    """[N, I], dense."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def _forward(call: Call, values: Sequence[Tensor], *, keep: bool) -> tuple[Tensor, list[Tensor], Kept | None]:
    x, states, weights = _split(call, values)
    return call.fused.forward(_rows(x), call.times, states, weights, keep=keep)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, *values: Tensor) -> tuple[Tensor, ...]:
        output, finals, kept = _forward(call, values, keep=True)
        assert kept is not None
        ctx.call, ctx.count, ctx.buffers = call, len(values), tuple(kept.buffers)
        ctx.save_for_backward(*values, *kept.slabs, *kept.buffers.values())
        ctx.set_materialize_grads(True)
        return output, *finals

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        call, saved = ctx.call, ctx.saved_tensors
        values, rest = saved[: ctx.count], saved[ctx.count :]
        if torch.is_grad_enabled() or any(map(is_batched, gradients)):
            return None, *_differentiable(call, values, gradients, ctx.needs_input_grad[1:])
        x, states, weights = _split(call, values)
        slabs = list(rest[: len(states)])
        kept = Kept(slabs, dict(zip(ctx.buffers, rest[len(states) :], strict=True)))
        dx, dstates, dweights = call.fused.backward(
            _rows(x),
            call.times,
            weights,
            kept,
            gradients[0],
            list(gradients[1:]),
            needs_x=ctx.needs_input_grad[1],
        )
        return (
            None,
            None if dx is None else dx.view(x.shape),
            *dstates,
            *(dweights[name] for name in call.names),
        )


def _differentiable(
    call: Call, values: Sequence[Tensor], gradients: Sequence[Tensor], needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients by the eager formula, which can be differentiated again."""
    with torch.enable_grad():
        x, states, weights = _split(call, values)
        times = call.times
        sizes = None if times.batch_sizes is None else times.batch_sizes.tolist()
        output, finals = eager.run_direction(call.case, weights, x, tuple(states), times.is_reverse, sizes)
        wanted = [value for value, is_needed in zip(values, needed, strict=True) if is_needed]
        made = torch.autograd.grad((output, *finals), wanted, gradients, create_graph=True, allow_unused=True)
    found = iter(made)
    return [next(found) if is_needed else None for is_needed in needed]
