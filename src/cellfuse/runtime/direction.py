"""One direction of one layer without its tensors: what it computes, by a kernel and by the formula.

No derivatives of the kernel here: see `library`. The formula is plain torch, which differentiates it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from cellfuse.cell import Cell
from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.errors import CellError, ShapeError
from cellfuse.masked import cell_of_reference
from cellfuse.runtime import cuda_step, eager
from cellfuse.runtime.case import Case, Weights
from cellfuse.runtime.fused import Fused, Kept, fused_step
from cellfuse.runtime.kernel_call import run_all
from cellfuse.runtime.per_step import PerStep
from cellfuse.runtime.times import Times, equal_times, packed_times
from cellfuse.runtime.whole_loop import WholeLoop

_TEXT = re.compile(
    r"(.+) (cpu|cuda) H=([1-9]\d*) P=(\d+) N=([1-9]\d*) bias=([01]) reverse=([01]) recompute=([01]) ?(.*)",
    re.DOTALL,
)
_BUFFERS = ("products", "kept", "kept_numbers", "output")


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
class Direction:
    """What is not a tensor in one call, and the names of what is.

    Attributes:
        cell: the cell.
        sizes: of its axes.
        has_bias: of the layer.
        is_reverse: the last time step is computed first.
        recompute: keep only states for the backward pass.
        names: of the weights, in order.
        backend: whose kernels run it, "cpu" or "cuda".

    Values are the tensors (x, *states, *weights): x [T, B, I], or [N, I] if packed; states [B, H].
    """

    cell: Cell
    sizes: Sizes
    has_bias: bool
    is_reverse: bool
    recompute: bool
    names: tuple[str, ...]
    backend: str = "cpu"

    def kernel(self, x: Tensor) -> Fused | PerStep:
        """What knows the memory of the kernels for tensors as x."""
        given = self.cell, self.has_bias, self.sizes, x.dtype
        if self.backend == "cuda":
            return cuda_step.per_step(*given, x.device, self.recompute)
        return fused_step(*given, self.recompute)

    def runner(self, x: Tensor, times: Times, is_operator: bool, directions: int = 1) -> Runner:
        """What runs the loop, or those of all directions of the layer if it can."""
        is_packed = times.batch_sizes is not None
        is_settled = is_operator and not self.may_be_whole(x, is_packed)
        if self.backend != "cuda" or self.recompute or is_settled:
            return self.kernel(x)
        want = cuda_step.wanted(self.cell, self.has_bias, self.sizes, x.dtype, times.batch, directions)
        return cuda_step.runner(want, x.device)

    def may_be_whole(self, x: Tensor, is_packed: bool) -> bool:
        """Whether an operator's loops may be kernels of the whole loop, and so keeps all in float32; step by
        step 16-bit numbers are kept. The batch, which torch.compile may not know, does not count."""
        if self.backend != "cuda" or self.recompute or is_packed:
            return False
        want = cuda_step.wanted(self.cell, self.has_bias, self.sizes, x.dtype, 1)
        return bool(cuda_step.plan(want, x.device).spread)

    def split(self, values: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        """(x, states, weights by name)."""
        count = 1 + len(self.cell.states)
        return values[0], list(values[1:count]), dict(zip(self.names, values[count:], strict=True))

    def times(self, values: Sequence[Tensor], batch_sizes: Tensor | None) -> Times:
        """The time steps."""
        x, batch = values[0], batch_of(values[1:])
        if batch_sizes is None:
            return equal_times(x.shape[0], batch, self.is_reverse)
        return packed_times(batch_sizes, len(x), batch, self.is_reverse)

    def buffers(self, kernel: Fused | PerStep) -> list[str]:
        """Names of the buffers that `forward` leaves for `backward`."""
        names = [name for name in _BUFFERS if kernel.layout.strides.get(name)]
        return [name for name in names if name != "products" or not self.recompute]

    def shapes(self, values: Sequence[Tensor], batch_sizes: Tensor | None, keep: bool) -> list[tuple]:
        """(shape, dtype) of what `forward` returns. The numbers may be symbols of torch.compile."""
        x, states, _ = self.split(values)
        kernel, batch = self.kernel(x), batch_of(states)
        is_whole = keep and self.may_be_whole(x, batch_sizes is not None)
        shape = kernel.columns.shape(kernel.program.output)
        width = {"H": self.sizes.hidden, "P": self.sizes.projected}
        steps = x.shape[0] if batch_sizes is None else batch_sizes.shape[0]
        rows = x.shape[0] if batch_sizes is not None else steps * batch
        made = [([*x.shape[:-1], width[shape[0]]], x.dtype)]
        made += [([batch, width[s[0]]], x.dtype) for s in kernel.shapes]
        if keep:
            made += [([steps + 1, batch, size], kernel.real) for size in kernel.widths]
            made += [
                ([rows, kernel.layout.strides[name]], kernel.real if is_whole else kernel.dtype_of(name))
                for name in self.buffers(kernel)
            ]
        return made

    # by the formula

    def formula(self, values: Sequence[Tensor], batch_sizes: Tensor | None) -> tuple[Tensor, ...]:
        """(output, *final states), differentiable to every order and in every mode."""
        x, states, weights = self.split(values)
        sizes = self.sizes
        case = Case(
            self.cell, self.has_bias, sizes.hidden, sizes.projected, sizes.heads, 1, 1, 0.0, (), x, ()
        )
        alive = None if batch_sizes is None else batch_sizes.tolist()
        output, finals = eager.run_direction(case, weights, x, tuple(states), self.is_reverse, alive)
        return output, *finals

    def formula_gradients(
        self, gradients: Sequence[Tensor], values: Sequence[Tensor], batch_sizes: Tensor | None
    ) -> list[Tensor]:
        """As `backward` returns them; differentiable, too."""
        pull = torch.func.vjp(lambda *v: self.formula(v, batch_sizes), *values)[1]
        return list(pull(tuple(gradients)))

    # as a text, which is what operators of torch take

    @property
    def text(self) -> str:
        """The direction as one line."""
        flags = self.has_bias, self.is_reverse, self.recompute
        return direction_text(self.cell, self.sizes, *flags, self.names, self.backend)


Call = tuple[Direction, Times]


def forward(
    calls: Sequence[Call], values: Sequence[Sequence[Tensor]], *, keep: bool, is_operator: bool = False
) -> list[tuple[list[Tensor], Kept | None]]:
    """By the kernel, for one or two directions of a layer: [output, *final states] and, if `keep`, what
    `backward` reads. Both directions run side by side where their runner can."""
    runners, given = [], []
    for (direction, times), tensors in zip(calls, values, strict=True):
        x, states, weights = direction.split(tensors)
        runners.append(direction.runner(x, times, is_operator, len(calls)))
        given.append((_rows(x), times, states, weights))
    fused = [runner for runner in runners if isinstance(runner, Fused)]
    if len(fused) == len(calls):
        pairs = zip(fused, given, strict=True)
        made = run_all([each.forward_call(*g, keep=keep, share=len(calls)) for each, g in pairs])
    elif isinstance(runners[0], WholeLoop) and runners[0].directions == len(calls):
        made = runners[0].run_forward(given, keep=keep)
    else:
        made = [each.forward(*g, keep=keep) for each, g in zip(runners, given, strict=True)]
    return [([output, *finals], kept) for output, finals, kept in made]


def backward(
    calls: Sequence[Call],
    gradients: Sequence[Sequence[Tensor]],
    values: Sequence[Sequence[Tensor]],
    kept: Sequence[Kept],
    *,
    needs_x: bool = True,
    is_operator: bool = False,
) -> list[list[Tensor | None]]:
    """By the kernel, for each direction the gradient of each value from those of output and states; that of
    x only if it is needed."""
    runners, given = [], []
    for (direction, times), grads, tensors, each in zip(calls, gradients, values, kept, strict=True):
        x, _, weights = direction.split(tensors)
        runners.append(direction.runner(x, times, is_operator, len(calls)))
        output_gradient, *state_gradients = map(in_memory, grads)
        given.append((_rows(x), times, weights, each, output_gradient, state_gradients))
    fused = [runner for runner in runners if isinstance(runner, Fused)]
    if len(fused) == len(calls):
        pairs = zip(fused, given, strict=True)
        made = run_all([each.backward_call(*g, needs_x=needs_x, share=len(calls)) for each, g in pairs])
    elif isinstance(runners[0], WholeLoop) and runners[0].directions == len(calls):
        made = runners[0].run_backward(given, needs_x=needs_x)
    else:
        made = [each.backward(*g, needs_x=needs_x) for each, g in zip(runners, given, strict=True)]
    found = []
    for (direction, _), tensors, (dx, dstates, dweights) in zip(calls, values, made, strict=True):
        dx = None if dx is None else dx.view(tensors[0].shape)
        found.append([dx, *dstates, *_of_names(direction, tensors, dweights, is_operator)])
    return found


def in_memory(value: Tensor) -> Tensor:
    """The same numbers in memory, if they are a negated view's or a tensor of zeros without any."""
    return value.clone() if value._is_zerotensor() else value.resolve_neg()


def _of_names(
    direction: Direction, values: Sequence[Tensor], found: Weights, is_operator: bool
) -> list[Tensor | None]:
    """The gradients of the weights in order; of masks there are none, for which operators return zeros."""
    _, _, weights = direction.split(values)
    made: list[Tensor | None] = []
    for name in direction.names:
        if name in found:
            made.append(found[name].contiguous())
        else:
            made.append(torch.zeros_like(weights[name]) if is_operator else None)
    return made


def direction_text(
    cell: Cell,
    sizes: Sizes,
    has_bias: bool,
    is_reverse: bool,
    recompute: bool,
    names: Sequence[str],
    backend: str,
) -> str:
    """`Direction.text`, for torch.compile, which cannot look into the making of a Direction."""
    numbers = f"H={sizes.hidden} P={sizes.projected} N={sizes.heads}"
    flags = f"bias={int(has_bias)} reverse={int(is_reverse)} recompute={int(recompute)}"
    return f"{cell.reference} {backend} {numbers} {flags} {' '.join(names)}"


@lru_cache(maxsize=1024)
def direction_of(text: str) -> Direction:
    """The direction with this text."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise CellError(
            f"cellfuse operator: the direction is {text!r}, expected "
            "'CELL cpu|cuda H=1 P=0 N=1 bias=0|1 reverse=0|1 recompute=0|1 NAMES', as torch.compile writes it"
        )
    reference, backend, *rest, names = found.groups()
    H, P, N, *flags = map(int, rest)
    has_bias, is_reverse, recompute = map(bool, flags)
    cell, sizes = cell_of_reference(reference), Sizes(H, P, N)
    return Direction(cell, sizes, has_bias, is_reverse, recompute, tuple(names.split()), backend)


def batch_of(states: Sequence[Tensor]) -> int:
    """B, of packed input, too."""
    if states[0].dim() != 2:
        raise ShapeError(f"cellfuse operator: the first state is {list(states[0].shape)}, expected [B, H]")
    return states[0].shape[0]


def _rows(x: Tensor) -> Tensor:
    """[N, I], dense."""
    return x.reshape(-1, x.shape[-1]).contiguous()
