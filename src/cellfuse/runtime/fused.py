"""One direction of one layer on a CPU kernel: memory, calls chunk by chunk, the large products around them.

No autograd here: see `op`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cellfuse.cell import Cell
from cellfuse.codegen.cpu.compile import Kernel, StepKernel
from cellfuse.codegen.cpu.layout import Layout, Sizes
from cellfuse.codegen.cpu.target import host
from cellfuse.codegen.lower import lower
from cellfuse.codegen.program import Place
from cellfuse.runtime.case import Weights
from cellfuse.runtime.columns import Columns, Outer
from cellfuse.runtime.kernel_call import KernelCall
from cellfuse.runtime.once import Once
from cellfuse.runtime.private import linear
from cellfuse.runtime.times import Times

# Bytes of a chunk of time steps: what stays in the second-level cache between the loop and the large
# products before and after it.
CHUNK = 1 << 20


# Multiplications, about 0.2 ms of them, from which on another thread is worth starting.
_WORTH = 1 << 23


# Multiplications and results of one product that may be made before a signal is handled, 20 to 40 ms of
# them on Zen 4; the copies of such pieces are less than a hundredth of the work.
_UNHEARD = 1 << 31, 1 << 23


@dataclass(frozen=True)
class Kept:
    """What the forward loop leaves for the backward loop.

    Attributes:
        slabs: of each state [T + 1, B, width], the initial one at the end that is computed first.
        buffers: "products", "kept", "kept_numbers" and, if the output is no state, "output".
    """

    slabs: list[Tensor]
    buffers: dict[str, Tensor]


class Fused:
    """A cell's step over time, compiled for given sizes.

    Args:
        has_bias: of the layer.
        dtype: float32 or float64.
        recompute: the backward loop makes everything but the states again, input products included.
    """

    def __init__(
        self, cell: Cell, has_bias: bool, sizes: Sizes, dtype: torch.dtype, recompute: bool = False
    ) -> None:
        self.dtype, self.recompute = dtype, recompute
        self.real = dtype  # of the states
        self.program = lower(cell.step if has_bias else cell.step_without_bias, recompute=recompute)
        self.layout = Layout(self.program, sizes, 64 if dtype == torch.float64 else 32, host())
        self.columns = Columns(cell, self.layout)
        self.shapes = [leaf.shape for leaf in self.program.step.of_role("state")]
        self.widths = [self.layout.width(shape) for shape in self.shapes]
        self.size = self.layout.bits // 8
        self._kernels: Once[Kernel] = Once()
        self._steps: Once[StepKernel] = Once()
        self._memory: dict[tuple[str, int, int], tuple[list[tuple[int, int]], int]] = {}
        matrices = len(self.columns.matrices)
        self.work = sum(self.widths) * (8 + matrices * sizes.hidden // sizes.heads)

    def _kernel(self, loop: str) -> Kernel:
        """The kernel with a loop, compiled at first use; training needs two loops, inference one."""
        loops = ("infer",) if loop == "infer" else ("forward", "backward")
        return self._kernels.get(loops, lambda: Kernel(self.layout, loops))

    def dtype_of(self, name: str) -> torch.dtype:
        """Of the numbers in a buffer."""
        return self.dtype

    def step_kernel(self) -> StepKernel:
        """The kernel of one time step, compiled at first use."""
        return self._steps.get("", lambda: StepKernel(self.layout))

    def working_memory(self, kernel: Kernel, loop: str, batch: int) -> tuple[list[tuple[int, int]], int]:
        """((slot, offset in bytes) ..., numbers in all) of what a call needs for itself."""
        key = (loop, batch, torch.get_num_threads())
        if key not in self._memory:
            emitted, strides = kernel.emitted, self.layout.strides
            sizes = {name: strides[name] * batch for name in (f"{loop}_temp", f"{loop}_numbers")}
            sizes |= {f"{loop}_weights": emitted.weights[loop]}
            sizes |= {"scratch": emitted.scratch * torch.get_num_threads()}
            sizes["gathered"] = emitted.gathered * batch
            at, places = 0, []
            for name, size in sizes.items():
                places.append((self.layout.slots[name], at))
                at += size * self.size + 63 & -64
            self._memory[key] = places, at // self.size + 16
        return self._memory[key]

    def parts(self, times: Times) -> list[tuple[int, int]]:
        """The sequences in as many parts as threads are worth starting, which takes about 50 us."""
        batch = times.batch
        worth = times.steps * batch * self.work // _WORTH
        count = min(torch.get_num_threads(), batch // 8, worth) if batch >= 16 else 1
        size = -(-batch // max(count, 1))
        return [(at, min(at + size, batch)) for at in range(0, batch, size)]

    def _chunks(self, times: Times, numbers: int) -> list[tuple[int, int]]:
        """Steps in pieces of about CHUNK bytes, at `numbers` a row."""
        size = max(1, CHUNK // max(1, times.batch * numbers * self.size))
        count = -(-times.steps // size)
        size = -(-times.steps // count)
        return [(at, min(at + size, times.steps)) for at in range(0, times.steps, size)]

    def forward(
        self, x: Tensor, times: Times, states: list[Tensor], weights: Weights, *, keep: bool
    ) -> tuple[Tensor, list[Tensor], Kept | None]:
        """Run the cell over the sequence.

        Args:
            x: [N, I], rows of all time steps.
            states: initial, [B, width of the state].
            keep: write what `backward` reads.

        Returns:
            output [T, B, H], or [N, H] for packed input; final states [B, ...]; what was kept.
        """
        loop = "forward" if keep else "infer"
        kernel, columns = self._kernel(loop), self.columns
        call = KernelCall(self, kernel, loop, times, weights, x)
        weight, bias = self.input_weights(weights)
        slabs = self._slabs(call, times, states, keep)
        rows = x.shape[0]
        for name in ("kept", "kept_numbers", "output"):
            if self.layout.strides.get(name) and (keep or name == "output"):
                call.give(name, x.new_empty(rows, self.layout.strides[name]))
        stride = self.layout.strides["products"]
        if (keep and not self.recompute) or not stride:
            if stride:
                call.give("products", _linear(x, weight, bias))
            call.run(0, times.steps)
        else:
            for first, last in self._chunks(times, stride):
                begin, end = times.rows(first, last)
                call.give("products", linear(x[begin:end], weight, bias), begin)
                call.run(first, last)
        place = self.program.output
        if place.buffer == "after":
            output = self._states_of_rows(slabs[place.column], times, "after")
        else:
            output = call.tensors["output"]
            output = output if times.batch_sizes is not None else output.view(times.steps, times.batch, -1)
        output = columns.gather(output, columns.shape(place)).contiguous()
        finals = [
            columns.gather(
                self._final(slab, times, self._is_whole(k, times, keep)), self.shapes[k]
            ).contiguous()
            for k, slab in enumerate(slabs)
        ]
        if not keep:
            return output, finals, None
        names = ["kept", "kept_numbers", "output"] + ["products"] * (not self.recompute)
        names = [name for name in names if name in call.tensors]
        return output, finals, Kept(slabs, {name: call.tensors[name] for name in names})

    def input_weights(self, weights: Weights) -> tuple[Tensor, Tensor | None]:
        """weight_ih and its bias in the kernel's order; an empty weight if no gate has an input part."""
        if not self.program.inputs:
            return torch.empty(0), None
        bias = self.columns.input_bias(weights)
        weight = self.columns.spread(weights["weight_ih"], ("H",), 0)
        return weight, None if bias is None else self.columns.spread(bias, ("H",))

    def _is_whole(self, k: int, times: Times, keep: bool) -> bool:
        """Whether a state's values of all time steps are in memory."""
        return keep or self.program.output == Place("after", k) or times.batch_sizes is not None

    def _slabs(self, call: KernelCall, times: Times, states: list[Tensor], keep: bool) -> list[Tensor]:
        """Memory for the states of all time steps, or of the last two where no more are needed.

        With the initial state as one more slab if it is read again: at the end that comes first.
        """
        slabs = []
        for k, state in enumerate(states):
            state = self.columns.spread(state, self.shapes[k])
            shape = (times.batch, self.widths[k])
            if keep or times.batch_sizes is not None:
                slab = state.new_empty(times.steps + 1, *shape)
                first = slab[-1 if times.is_reverse else 0]
                if times.batch_sizes is not None and times.is_reverse:
                    slab.copy_(state)  # sequences that end early begin their way back with it
                else:
                    first.copy_(state)
                call.give_state(k, slab if times.is_reverse else slab[1:], first, -1)
            else:
                is_output = self._is_whole(k, times, keep)
                slab = state.new_empty(times.steps if is_output else 2, *shape)
                call.give_state(k, slab, state.contiguous(), -1 if is_output else 1)
            slabs.append(slab)
        return slabs

    def _states_of_rows(self, slab: Tensor, times: Times, which: str) -> Tensor:
        """The states before or after each time step: [T, B, width], or [N, width] if packed."""
        if len(slab) == times.steps:
            return slab
        is_early = (which == "before") != times.is_reverse
        if times.batch_sizes is None:
            return slab[:-1] if is_early else slab[1:]
        rows = times.alive() if is_early else times.alive() + times.batch
        return slab.flatten(0, 1)[rows]

    def _final(self, slab: Tensor, times: Times, is_whole: bool) -> Tensor:
        """A state after the last step of each sequence."""
        if not is_whole:
            last = 0 if times.is_reverse else times.steps - 1
            return slab[last & 1].clone()
        if times.is_reverse:
            return slab[0].clone()
        if times.batch_sizes is None:
            return slab[-1].clone()
        sequences = torch.arange(times.batch, device=slab.device)
        lengths = (times.batch_sizes.unsqueeze(0) > sequences.unsqueeze(1)).sum(1)
        return slab[lengths, sequences]

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
        columns, layout, count = self.columns, self.layout, len(self.program.inputs)
        call = KernelCall(self, self._kernel("backward"), "backward", times, weights, x)
        for k, slab in enumerate(kept.slabs):
            first = slab[-1 if times.is_reverse else 0]
            call.give_state(k, slab if times.is_reverse else slab[1:], first, -1)
        for name, value in kept.buffers.items():
            call.give(name, value)
        shape = columns.shape(Place("output_gradient", 0))
        call.give("output_gradient", columns.spread(output_gradient, shape).contiguous())
        pairs = zip(state_gradients, self.shapes, strict=True)
        spread = [columns.spread(value, shape) for value, shape in pairs]
        carry = (
            torch.cat(spread, -1)
            if len(spread) > 1
            else spread[0].clone(memory_format=torch.contiguous_format)
        )
        call.give("carry", carry)
        weight = columns.spread(weights["weight_ih"], ("H",), 0) if count else x
        dx = (torch.empty_like(x) if count else torch.zeros_like(x)) if needs_x else None
        sums: dict[object, Tensor] = {}
        stride = layout.strides["gradients"]
        again = layout.strides["products"] if self.recompute else 0
        chunks = self._chunks(times, max(stride + again, 1))
        longest = max(b - a for a, b in (times.rows(*chunk) for chunk in chunks))
        buffers = {
            name: x.new_empty(longest, layout.strides[name])
            for name in ("gradients", "gradient_numbers")
            if layout.strides[name]
        }
        before = self._operands(kept, times)
        for begin_step, end_step in reversed(chunks):
            begin, end = times.rows(begin_step, end_step)
            if again:
                call.give("products", linear(x[begin:end], *self.input_weights(weights)), begin)
            for name, buffer in buffers.items():
                call.give(name, buffer, begin)
            call.run(begin_step, end_step)
            for name, buffer in buffers.items():
                _add(sums, name, buffer[: end - begin].sum(0))
            made = buffers["gradients"][: end - begin] if buffers else x
            if count:
                inputs = columns.column(made, Place("gradients", 0), count)
                if dx is not None:
                    torch.mm(inputs, weight, out=dx[begin:end])
                _add_product(sums, "weight_ih", inputs, x[begin:end])
            for outer in columns.outers:
                left = columns.column(made, outer.left, len(outer.labels))
                right = before.get(outer.right)
                right = columns.column(made, outer.right) if right is None else right[begin:end]
                if outer.is_by_head:
                    heads = layout.sizes.heads
                    left, right = (v.unflatten(1, (heads, -1)).transpose(0, 1) for v in (left, right))
                    _add(sums, outer, torch.bmm(left.transpose(1, 2), right))
                else:
                    _add_product(sums, outer, left, right)
        if count:
            sums["weight_ih"] = columns.gather(sums["weight_ih"], ("H",), 0)
        for outer in columns.outers:
            sums[outer] = self._matrix(sums[outer], outer)
        states = [
            columns.gather(columns.column(carry, Place("carry", k)), shape).contiguous()
            for k, shape in enumerate(self.shapes)
        ]
        return dx, states, columns.gradients(weights, sums)

    def _operands(self, kept: Kept, times: Times) -> dict[Place, Tensor]:
        """The states before each step as rows [N, width], for the products after the loop."""
        wanted = {outer.right for outer in self.columns.outers if outer.right.buffer == "before"}
        found = {}
        for place in wanted:
            rows = self._states_of_rows(kept.slabs[place.column], times, "before")
            found[place] = rows if times.batch_sizes is not None else rows.flatten(0, 1)
        return found

    def _matrix(self, total: Tensor, outer: Outer) -> Tensor:
        """A matrix's gradient without the padding."""
        if outer.is_by_head:
            units = self.layout.units("H")
            return total[:, :units, :units].reshape(-1, units)
        left, right = self.columns.shape(outer.left), self.columns.shape(outer.right)
        return self.columns.gather(self.columns.gather(total, left, 0), right, 1)


_fused: Once[Fused] = Once()


def fused_step(
    cell: Cell, has_bias: bool, sizes: Sizes, dtype: torch.dtype, recompute: bool = False
) -> Fused:
    """The compiled step of a cell. The latest 256 are kept."""
    key = (cell, has_bias, sizes, dtype, recompute)
    return _fused.get(key, lambda: Fused(*key))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The input product; a long one in pieces, between which Ctrl-C is heard."""
    rows = max(1, min(_UNHEARD[0] // weight.numel(), _UNHEARD[1] // len(weight)))
    if len(x) <= rows:
        return linear(x, weight, bias)
    made = x.new_empty(len(x), len(weight))
    for at in range(0, len(x), rows):
        made[at : at + rows] = linear(x[at : at + rows], weight, bias)
    return made


def _add(sums: dict[object, Tensor], key: object, value: Tensor) -> None:
    sums[key] = sums[key].add_(value) if key in sums else value


def _add_product(sums: dict[object, Tensor], key: object, left: Tensor, right: Tensor) -> None:
    """Add left^T right."""
    if key in sums:
        sums[key].addmm_(left.t(), right)
    else:
        sums[key] = torch.mm(left.t(), right)
