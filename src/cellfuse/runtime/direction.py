"""One direction of one layer without its tensors: what it computes, by a kernel and by the formula.

No derivatives of the kernel here: see `library`. The formula is plain torch, which differentiates it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from cellfuse.cell import Cell, cell_of_reference
from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.errors import ShapeError
from cellfuse.runtime import eager
from cellfuse.runtime.case import Case
from cellfuse.runtime.cuda_step import runner_of
from cellfuse.runtime.fused import Fused, Kept, fused_step
from cellfuse.runtime.per_step import PerStep
from cellfuse.runtime.times import Times, packed_times, starts

_BUFFERS = ("products", "kept", "kept_numbers", "output")


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

    Values are the tensors (x, *states, *weights): x [T, B, I], or [N, I] if packed; states [B, H].
    """

    cell: Cell
    sizes: Sizes
    has_bias: bool
    is_reverse: bool
    recompute: bool
    names: tuple[str, ...]

    def runner(self, x: Tensor) -> Fused | PerStep:
        """The compiled step for tensors as x."""
        given = self.cell, self.has_bias, self.sizes, x.dtype
        if x.device.type == "cuda":
            return runner_of(*given, x.device, self.recompute)
        return fused_step(*given, self.recompute)

    def split(self, values: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        """(x, states, weights by name)."""
        count = 1 + len(self.cell.states)
        return values[0], list(values[1:count]), dict(zip(self.names, values[count:], strict=True))

    def times(self, values: Sequence[Tensor], batch_sizes: Tensor | None) -> Times:
        """The time steps."""
        x, batch = values[0], values[1].shape[0]
        if batch_sizes is None:
            return Times(starts(x.shape[0], batch), batch, self.is_reverse)
        return packed_times(batch_sizes, len(x), batch, self.is_reverse)

    # by the kernel

    def forward(self, values: Sequence[Tensor], times: Times, *, keep: bool) -> list[Tensor]:
        """[output, *final states] and, if `keep`, [*slabs, *buffers] for `backward`."""
        x, states, weights = self.split(values)
        runner = self.runner(x)
        output, finals, kept = runner.forward(_rows(x), times, states, weights, keep=keep)
        if kept is None:
            return [output, *finals]
        return [output, *finals, *kept.slabs, *(kept.buffers[name] for name in self.buffers(runner))]

    def backward(
        self,
        gradients: Sequence[Tensor],
        values: Sequence[Tensor],
        times: Times,
        kept: Sequence[Tensor],
        *,
        needs_x: bool = True,
    ) -> list[Tensor | None]:
        """The gradient of each value, that of x only if it is needed, from those of output and states."""
        x, states, weights = self.split(values)
        runner, count = self.runner(x), len(states)
        buffers = dict(zip(self.buffers(runner), kept[count:], strict=True))
        dx, dstates, dweights = runner.backward(
            _rows(x),
            times,
            weights,
            Kept(list(kept[:count]), buffers),
            gradients[0],
            list(gradients[1:]),
            needs_x=needs_x,
        )
        return [
            None if dx is None else dx.view(x.shape),
            *dstates,
            *(dweights[name].contiguous() for name in self.names),
        ]

    def buffers(self, runner: Fused | PerStep) -> list[str]:
        """Names of the buffers that `forward` leaves for `backward`."""
        names = [name for name in _BUFFERS if runner.layout.strides.get(name)]
        return [name for name in names if name != "products" or not self.recompute]

    def shapes(self, values: Sequence[Tensor], batch_sizes: Tensor | None, keep: bool) -> list[tuple]:
        """(shape, dtype) of what `forward` returns. The numbers may be symbols of torch.compile."""
        x, states, _ = self.split(values)
        runner, batch = self.runner(x), states[0].shape[0]
        shape = runner.columns.shape(runner.program.output)
        width = {"H": self.sizes.hidden, "P": self.sizes.projected}
        steps = x.shape[0] if batch_sizes is None else batch_sizes.shape[0]
        rows = x.shape[0] if batch_sizes is not None else steps * batch
        made = [([*x.shape[:-1], width[shape[0]]], x.dtype)]
        made += [([batch, width[s[0]]], x.dtype) for s in runner.shapes]
        if keep:
            made += [([steps + 1, batch, size], runner.real) for size in runner.widths]
            made += [
                ([rows, runner.layout.strides[name]], runner.dtype_of(name)) for name in self.buffers(runner)
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
        _, pull = torch.func.vjp(lambda *v: self.formula(v, batch_sizes), *values)
        return list(pull(tuple(gradients)))

    # as a text, which is what operators of torch take

    @property
    def text(self) -> str:
        """The direction as one line."""
        return direction_text(
            self.cell, self.sizes, self.has_bias, self.is_reverse, self.recompute, self.names
        )


def direction_text(
    cell: Cell, sizes: Sizes, has_bias: bool, is_reverse: bool, recompute: bool, names: Sequence[str]
) -> str:
    """`Direction.text`, for torch.compile, which cannot look into the making of a Direction."""
    numbers = f"H={sizes.hidden} P={sizes.projected} N={sizes.heads}"
    flags = f"bias={int(has_bias)} reverse={int(is_reverse)} recompute={int(recompute)}"
    return f"{cell.reference} {numbers} {flags} {' '.join(names)}"


@lru_cache(maxsize=1024)
def direction_of(text: str) -> Direction:
    """The direction with this text."""
    reference, *rest = text.split(" ")
    H, P, N, *flags = (int(part.partition("=")[2]) for part in rest[:6])
    has_bias, is_reverse, recompute = map(bool, flags)
    names = tuple(name for name in rest[6:] if name)
    return Direction(cell_of_reference(reference), Sizes(H, P, N), has_bias, is_reverse, recompute, names)


def check_shapes(direction: Direction, values: Sequence[Tensor]) -> None:
    """The tensors an operator is given have the sizes that the kernel will take for granted."""
    x, states, weights = direction.split(values)
    sizes, columns = direction.sizes, direction.runner(x).columns
    width = {"H": sizes.hidden, "P": sizes.projected, "N": sizes.hidden // sizes.heads}
    gates = len(direction.cell.input_gates)
    wanted: dict[str, list[int]] = {}
    if gates:
        wanted |= {"weight_ih": [gates * sizes.hidden, x.shape[-1]], "bias_ih": [gates * sizes.hidden]}
    for name, first, count in columns.sources.values():
        if count > 0:
            last = wanted.get(name, [0])[0]
            wanted[name] = [max(last, first + count)]
    batch = states[0].shape[0] if states else 0
    shapes = direction.runner(x).shapes
    named = {
        f"state {k}": (value, [batch, width[shape[0]]])
        for k, (value, shape) in enumerate(zip(states, shapes, strict=True))
    }
    named |= {name: (value, wanted[name]) for name, value in weights.items() if name in wanted}
    for name, (value, shape) in named.items():
        if list(value.shape[: len(shape)]) != shape or value.dtype != x.dtype:
            raise ShapeError(
                f"cellfuse operator: {name} is {list(value.shape)} {value.dtype}, expected {shape} {x.dtype}"
            )


def _rows(x: Tensor) -> Tensor:
    """[N, I], dense."""
    return x.reshape(-1, x.shape[-1]).contiguous()
