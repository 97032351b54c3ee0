"""The directions of one layer by one kernel that runs the whole loop over time with its weights on the chip.

For cells whose step has one product with a state, see `codegen.cuda.step.why_no_step`. Memory around the
kernels and the large products before and after them; no autograd here: see `op`. Directions stand side by
side in every array of the kernels; to the outside each has tensors of its own, which are views of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from cellfuse.cell import Cell
from cellfuse.codegen.cuda.kernel import CudaKernel, Launcher
from cellfuse.codegen.cuda.persistent import Persistent
from cellfuse.codegen.cuda.step import Step
from cellfuse.codegen.program import Place
from cellfuse.runtime import ragged
from cellfuse.runtime.case import Weights
from cellfuse.runtime.columns import Outer
from cellfuse.runtime.fused import Backward, Forward, Kept
from cellfuse.runtime.per_step import PerStep
from cellfuse.runtime.precision import is_tf32, matmul_in
from cellfuse.runtime.times import Times

# What `WholeLoop.forward` and `backward` take, of one direction: x is the same of all.
ForForward = tuple[Tensor, Times, list[Tensor], Weights]
ForBackward = tuple[Tensor, Times, Weights, Kept, Tensor, list[Tensor]]


class WholeLoop:
    """A cell's loop for given sizes, spread over a device in a given way.

    Args:
        around: the same step by step, whose layout of memory this shares.
        spread: the kernel of each loop.
        at_once: sequences that one launch may work on.
        launcher: of the device.
    """

    def __init__(
        self, around: PerStep, spread: dict[str, Persistent], at_once: int, launcher: Launcher
    ) -> None:
        self.around, self.spread, self.at_once, self.launcher = around, spread, at_once, launcher
        self.step: Step = spread["forward"].step
        self.cell: Cell = around.cell
        self.program, self.layout, self.columns = around.program, around.layout, around.columns
        self.dtype, self.sizes = around.dtype, around.layout.sizes
        self.heads, self.directions = spread["forward"].heads, spread["forward"].directions
        self._kernels: dict[str, CudaKernel] = {}
        self._written = {column: k for k, column in enumerate(self.step.written)}

    def kernel(self, loop: str) -> CudaKernel:
        """The kernel of a loop, written at first use."""
        if loop not in self._kernels:
            self._kernels[loop] = self.spread[loop].kernel()
        return self._kernels[loop]

    # launches

    def _launch(
        self, loop: str, all_times: Sequence[Times], tensors: dict[str, Tensor], like: Tensor
    ) -> None:
        one, kernel, times = self.spread[loop], self.kernel(loop), all_times[0]
        most = min(self.at_once, times.batch)
        exchange = like.new_empty(one.exchange_words(times.steps, most), dtype=torch.int32)
        counters = like.new_empty(one.counters(most), dtype=torch.int32)
        given = {name: value.data_ptr() for name, value in tensors.items()}
        given |= {"exchange": exchange.data_ptr(), "counters": counters.data_ptr()}
        given |= {"steps": times.steps, "batch": times.batch}
        given["reversed"] = sum(each.is_reverse << d for d, each in enumerate(all_times))
        for first in range(0, times.batch, most):
            exchange.fill_(-1)
            counters.zero_()
            given["first"] = first
            arguments = [given.get(parameter.name, 0) for parameter in kernel.parameters]
            grid = one.grid(min(most, times.batch - first))
            self.launcher.launch(kernel, kernel.entries[0], grid, arguments)

    def _weights(self, each: Sequence[Weights]) -> dict[str, Tensor]:
        """The weights as the kernels read them, in float32."""
        columns, tensors = self.columns, {}
        named = {"weights": self.step.matrices, "parameters": columns.parameters}
        for name, labels in (named | {"constants": columns.constants}).items():
            if labels:
                values = [columns.leaf(weights, label) for weights in each for label in labels]
                tensors[name] = torch.stack(values).to(torch.float32)
        return tensors

    def _precision(self, x: Tensor) -> AbstractContextManager:
        is_open = x.is_cuda and x.dtype == torch.float32
        return matmul_in(is_tf32(self.cell)) if is_open else nullcontext()

    # forward

    def forward(
        self, x: Tensor, times: Times, states: list[Tensor], weights: Weights, *, keep: bool
    ) -> Forward:
        """Run the cell over the sequence; arguments and results as `Fused.forward` has them."""
        return self.run_forward([(x, times, states, weights)], keep=keep)[0]

    def run_forward(self, given: Sequence[ForForward], *, keep: bool) -> list[Forward]:
        """`forward` of all directions that one launch is for."""
        with self._precision(given[0][0]):
            return self._forward(given, keep)

    def _forward(self, given: Sequence[ForForward], keep: bool) -> list[Forward]:
        x, all_times, all_weights = given[0][0], [each[1] for each in given], [each[3] for each in given]
        loop, strides, place = "forward" if keep else "infer", self.layout.strides, self.program.output
        times, count = all_times[0], self.directions
        rows = times.steps * times.batch
        tensors, alive = self._weights(all_weights), None
        if times.batch_sizes is not None:
            tensors["lengths"], alive = ragged.on_device(times, x)
        if strides["products"]:
            tensors["products"] = self._padded(self._products(x, all_weights), alive, rows)
        for name in ("kept", "output"):
            if strides.get(name) and (keep or name == "output"):
                tensors[name] = x.new_empty(rows, count * strides[name], dtype=torch.float32)
        initial = torch.stack([torch.stack(each[2]) for each in given], 1).to(torch.float32)
        tensors["initial"], tensors["final"] = initial, torch.empty_like(initial)
        slabs: dict[int, list[Tensor]] = {}
        for k in range(len(initial)):
            if keep or place == Place("after", k):
                tensors[f"state_{k}"], slabs[k] = self._slabs(all_times, x)
            if keep:
                for slab, each, value in zip(slabs[k], all_times, initial[k], strict=True):
                    slab[-1 if each.is_reverse else 0] = value
        self._launch(loop, all_times, tensors, x)
        buffers = {
            name: tensors[name].view(rows, count, strides[name]).unbind(1)
            for name in ("products", "kept", "output")
            if name in tensors
        }
        made: list[Forward] = []
        for d, each in enumerate(all_times):
            if place.buffer == "after":
                output = self.around.of_rows(slabs[place.column][d], each, "after")
            else:
                output = buffers["output"][d] if alive is None else buffers["output"][d][alive]
            if times.batch_sizes is None:
                output = output.reshape(times.steps, times.batch, -1)
            finals = [final.to(self.dtype, copy=True) for final in tensors["final"][:, d]]
            kept = Kept([slabs[k][d] for k in slabs], {n: value[d] for n, value in buffers.items()})
            made.append((output.to(self.dtype).contiguous(), finals, kept if keep else None))
        return made

    def _slabs(self, all_times: Sequence[Times], like: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Memory of one state: after each step for all directions, and the slab of each direction, where the
        initial state stands before the first step or behind the last."""
        times, behind = all_times[0], [each.is_reverse for each in all_times]
        first = int(not all(behind))
        steps = first + times.steps + any(behind)
        memory = like.new_empty(steps, times.batch, self.directions, self.sizes.hidden, dtype=torch.float32)
        begins = [first if is_behind else first - 1 for is_behind in behind]
        slabs = [memory[begin : begin + times.steps + 1, :, d] for d, begin in enumerate(begins)]
        return memory[first:], slabs

    def _products(self, x: Tensor, each: Sequence[Weights]) -> Tensor:
        """The input products of all directions, side by side."""
        weight = _joined([weights["weight_ih"] for weights in each])
        biases = [bias for bias in map(self.columns.input_bias, each) if bias is not None]
        made = torch.addmm(_joined(biases), x, weight.t()) if biases else torch.mm(x, weight.t())
        return made.to(torch.float32)

    @staticmethod
    def _padded(value: Tensor, alive: Tensor | None, rows: int) -> Tensor:
        """Rows of packed input at their positions in [T, B]; rows that no sequence has are 0."""
        if alive is None:
            return value.contiguous()
        return value.new_zeros(rows, value.shape[1]).index_copy_(0, alive, value)

    # backward

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
    ) -> Backward:
        """Gradients of x (unless it needs none), of the initial states and of each weight."""
        given = (x, times, weights, kept, output_gradient, state_gradients)
        return self.run_backward([given], needs_x=needs_x)[0]

    def run_backward(self, given: Sequence[ForBackward], *, needs_x: bool) -> list[Backward]:
        """`backward` of all directions that one launch is for."""
        with self._precision(given[0][0]):
            return self._backward(given, needs_x)

    def _backward(self, given: Sequence[ForBackward], needs_x: bool) -> list[Backward]:
        x, all_times, all_weights = given[0][0], [each[1] for each in given], [each[2] for each in given]
        all_kept = [each[3] for each in given]
        H, step, times, count = self.sizes.hidden, self.step, all_times[0], self.directions
        rows = times.steps * times.batch
        tensors, alive = self._weights(all_weights), None
        if times.batch_sizes is not None:
            tensors["lengths"], alive = ragged.on_device(times, x)
        for name in all_kept[0].buffers:
            tensors[name] = _side_by_side([kept.buffers[name].to(torch.float32) for kept in all_kept])
        pairs = list(zip(all_kept, all_times, strict=True))
        for k in range(len(all_kept[0].slabs)):
            after = [kept.slabs[k][int(not each.is_reverse) :][: times.steps] for kept, each in pairs]
            tensors[f"state_{k}"] = _side_by_side(after)
        initial = [torch.stack([slab[-int(e.is_reverse)] for slab in kept.slabs]) for kept, e in pairs]
        tensors["initial"] = torch.stack(initial, 1)
        outputs = [each[4].reshape(-1, H).to(torch.float32) for each in given]
        tensors["output_gradient"] = self._padded(_joined(outputs, 1), alive, rows)
        finals = torch.stack([torch.stack(each[5]) for each in given], 1)
        tensors["final_gradient"] = finals.to(torch.float32)
        tensors["initial_gradient"] = torch.empty_like(tensors["final_gradient"])
        made = x.new_empty(rows, count, len(step.written) * H, dtype=torch.float32)
        totals = x.new_empty(len(step.accumulated), count, times.batch, H, dtype=torch.float32)
        tensors |= {"gradients": made, "totals": totals}
        self._launch("backward", all_times, tensors, x)
        if alive is not None:
            made = made[alive]
        found = []
        for d, (kept, each) in enumerate(pairs):
            sums = self._sums(made[:, d], totals[:, d])
            dx = self._after(x, made[:, d].to(self.dtype), each, all_weights[d], kept, sums, needs_x)
            weights = self.columns.gradients(all_weights[d], sums)
            states = [value.to(self.dtype, copy=True) for value in tensors["initial_gradient"][:, d]]
            found.append((dx, states, {name: value.to(self.dtype) for name, value in weights.items()}))
        return found

    def _after(
        self,
        x: Tensor,
        made: Tensor,
        times: Times,
        weights: Weights,
        kept: Kept,
        sums: dict[object, Tensor],
        needs_x: bool,
    ) -> Tensor | None:
        """The products after the loop of a direction: the gradient of x; those of matrices in `sums`."""
        count, dx = len(self.program.inputs), None
        if needs_x and not count:
            dx = torch.zeros_like(x)
        if count:
            inputs = self._columns(made, range(count))
            sums["weight_ih"] = torch.mm(inputs.t(), x)
            if needs_x:
                dx = torch.mm(inputs, weights["weight_ih"])
        before: dict[int, Tensor] = {}
        for outer in self.columns.outers:
            column = outer.right.column
            if column not in before:
                value = self.around.of_rows(kept.slabs[column], times, "before")
                before[column] = value.reshape(-1, self.sizes.hidden).to(self.dtype)
            sums[outer] = self._outer(made, outer, before[column])
        return dx

    def _columns(self, made: Tensor, columns: range) -> Tensor:
        """Some columns of the program's "gradients", which the kernel may have written elsewhere."""
        H, places = self.sizes.hidden, [self._written[column] for column in columns]
        if places == list(range(places[0], places[0] + len(places))):
            return made[:, places[0] * H : (places[0] + len(places)) * H]
        return torch.cat([made[:, k * H : (k + 1) * H] for k in places], 1)

    def _outer(self, made: Tensor, outer: Outer, right: Tensor) -> Tensor:
        first = outer.left.column
        left = self._columns(made, range(first, first + len(outer.labels)))
        if not outer.is_by_head:
            return torch.mm(left.t(), right)
        left, right = (v.unflatten(1, (self.sizes.heads, -1)).transpose(0, 1) for v in (left, right))
        return torch.bmm(left.transpose(1, 2), right).flatten(0, 1)

    def _sums(self, made: Tensor, totals: Tensor) -> dict[object, Tensor]:
        """The gradients that are sums over rows, by buffer, where the program has their columns."""
        H, strides = self.sizes.hidden, self.layout.strides
        sums: dict[object, Tensor] = {}
        for name in ("gradients", "gradient_numbers"):
            if strides[name]:
                sums[name] = made.new_zeros(strides[name])
        whole = made.sum(0)
        for column, k in self._written.items():
            sums["gradients"][column * H : (column + 1) * H] = whole[k * H : (k + 1) * H]
        summed = totals.sum(1)
        for k, place in enumerate(self.step.accumulated):
            if place.buffer == "gradients":
                sums["gradients"][place.column * H : (place.column + 1) * H] = summed[k]
            else:
                sums[place.buffer][place.column] = summed[k].sum()
        return sums


def _joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    return torch.cat(list(parts), dim) if len(parts) > 1 else parts[0]


def _side_by_side(parts: list[Tensor]) -> Tensor:
    """Where the kernels find the parts of each direction, side by side before the last axis: where they are,
    if they stand so."""
    first, size = parts[0], parts[0].shape[-1] * parts[0].element_size()
    joined = torch.empty((*first.shape[:-1], len(parts), first.shape[-1]), device="meta").stride()
    strides = (*joined[:-2], joined[-1])
    if all(
        part.stride() == strides and part.data_ptr() == first.data_ptr() + d * size
        for d, part in enumerate(parts)
    ):
        return first
    return torch.stack(parts, -2)
