"""One direction of one layer by one kernel that runs the whole loop over time with its weights on the chip.

For cells whose step has one product with a state, see `codegen.cuda.step.why_no_step`. Memory around the
kernels and the large products before and after them; no autograd here: see `op`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from cellfuse.cell import Cell
from cellfuse.codegen.cuda.kernel import CudaKernel, Launcher
from cellfuse.codegen.cuda.persistent import Persistent
from cellfuse.codegen.cuda.step import Step
from cellfuse.codegen.program import Place
from cellfuse.runtime.case import Weights
from cellfuse.runtime.columns import Outer
from cellfuse.runtime.fused import Kept
from cellfuse.runtime.per_step import PerStep
from cellfuse.runtime.precision import is_tf32, matmul_in
from cellfuse.runtime.times import Times


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
        self.heads = spread["forward"].heads
        self._kernels: dict[str, CudaKernel] = {}
        self._written = {column: k for k, column in enumerate(self.step.written)}

    def kernel(self, loop: str) -> CudaKernel:
        """The kernel of a loop, written at first use."""
        if loop not in self._kernels:
            self._kernels[loop] = self.spread[loop].kernel()
        return self._kernels[loop]

    # launches

    def _launch(self, loop: str, times: Times, tensors: dict[str, Tensor], like: Tensor) -> None:
        one, kernel = self.spread[loop], self.kernel(loop)
        most = min(self.at_once, times.batch)
        exchange = like.new_empty(one.exchange_words(times.steps, most), dtype=torch.int32)
        counters = like.new_empty(one.counters(most), dtype=torch.int32)
        given = {name: value.data_ptr() for name, value in tensors.items()}
        given |= {"exchange": exchange.data_ptr(), "counters": counters.data_ptr()}
        given |= {"steps": times.steps, "batch": times.batch, "reversed": int(times.is_reverse)}
        for first in range(0, times.batch, most):
            exchange.fill_(-1)
            counters.zero_()
            given["first"] = first
            arguments = [given.get(parameter.name, 0) for parameter in kernel.parameters]
            grid = one.grid(min(most, times.batch - first))
            self.launcher.launch(kernel, kernel.entries[0], grid, arguments)

    def _weights(self, weights: Weights, times: Times, like: Tensor) -> dict[str, Tensor]:
        """What the kernels read besides the sequence, in float32."""
        columns, tensors = self.columns, {}
        units = self.sizes.hidden // self.heads
        if self.step.matrices:
            parts = [
                columns.leaf(weights, label).reshape(self.heads, units, units) for label in self.step.matrices
            ]
            tensors["weights"] = torch.stack(parts).to(torch.float32)
        for name, labels in (("parameters", columns.parameters), ("constants", columns.constants)):
            if labels:
                values = [columns.leaf(weights, label).to(torch.float32) for label in labels]
                tensors[name] = torch.stack(values)
        if times.batch_sizes is not None:
            sequences = torch.arange(times.batch, device="cpu")
            lengths = (times.batch_sizes.unsqueeze(0) > sequences.unsqueeze(1)).sum(1)
            tensors["lengths"] = lengths.to(like.device, torch.int32, non_blocking=True)
        return tensors

    def _precision(self, x: Tensor) -> AbstractContextManager:
        is_open = x.is_cuda and x.dtype == torch.float32
        return matmul_in(is_tf32(self.cell)) if is_open else nullcontext()

    # forward

    def forward(
        self, x: Tensor, times: Times, states: list[Tensor], weights: Weights, *, keep: bool
    ) -> tuple[Tensor, list[Tensor], Kept | None]:
        """Run the cell over the sequence; arguments and results as `Fused.forward` has them."""
        with self._precision(x):
            return self._forward(x, times, states, weights, keep)

    def _forward(
        self, x: Tensor, times: Times, states: list[Tensor], weights: Weights, keep: bool
    ) -> tuple[Tensor, list[Tensor], Kept | None]:
        loop, H, strides = "forward" if keep else "infer", self.sizes.hidden, self.layout.strides
        rows = times.steps * times.batch
        alive = self._alive(times, x)
        tensors = self._weights(weights, times, x)
        if strides["products"]:
            tensors["products"] = self._padded(self._products(x, weights), alive, rows)
        for name in ("kept", "output"):
            if strides.get(name) and (keep or name == "output"):
                tensors[name] = x.new_empty(rows, strides[name], dtype=torch.float32)
        place = self.program.output
        slabs = []
        initial = torch.stack(states).to(torch.float32)
        for k in range(len(states)):
            slab = x.new_empty(times.steps + 1, times.batch, H, dtype=torch.float32)
            if keep or place == Place("after", k):
                slab[-1 if times.is_reverse else 0] = initial[k]
                tensors[f"state_{k}"] = slab if times.is_reverse else slab[1:]
            slabs.append(slab)
        tensors["initial"], tensors["final"] = initial, torch.empty_like(initial)
        self._launch(loop, times, tensors, x)
        if place.buffer == "after":
            output = self.around.of_rows(slabs[place.column], times, "after")
        else:
            output = tensors["output"]
            if alive is not None:
                output = output[alive]
        if times.batch_sizes is None:
            output = output.view(times.steps, times.batch, H)
        finals = list(tensors["final"].to(self.dtype).unbind(0))
        output = output.to(self.dtype).contiguous()
        if not keep:
            return output, [final.clone() for final in finals], None
        names = [name for name in ("products", "kept", "output") if name in tensors]
        return output, [f.clone() for f in finals], Kept(slabs, {name: tensors[name] for name in names})

    def _products(self, x: Tensor, weights: Weights) -> Tensor:
        weight, bias = weights["weight_ih"], self.columns.input_bias(weights)
        made = torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())
        return made.to(torch.float32)

    @staticmethod
    def _alive(times: Times, like: Tensor) -> Tensor | None:
        """For packed input the position of each row in [T, B]."""
        if times.batch_sizes is None:
            return None
        return times.alive().to(like.device, non_blocking=True)

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
    ) -> tuple[Tensor | None, list[Tensor], dict[str, Tensor]]:
        """Gradients of x (unless it needs none), of the initial states and of each weight."""
        with self._precision(x):
            return self._backward(x, times, weights, kept, output_gradient, state_gradients, needs_x)

    def _backward(
        self,
        x: Tensor,
        times: Times,
        weights: Weights,
        kept: Kept,
        output_gradient: Tensor,
        state_gradients: list[Tensor],
        needs_x: bool,
    ) -> tuple[Tensor | None, list[Tensor], dict[str, Tensor]]:
        H, rows, step = self.sizes.hidden, times.steps * times.batch, self.step
        alive = self._alive(times, x)
        tensors = self._weights(weights, times, x) | kept.buffers
        ends = -1 if times.is_reverse else 0
        tensors["initial"] = torch.stack([slab[ends] for slab in kept.slabs])
        for k, slab in enumerate(kept.slabs):
            tensors[f"state_{k}"] = slab if times.is_reverse else slab[1:]
        given = output_gradient.reshape(-1, H).to(torch.float32)
        tensors["output_gradient"] = self._padded(given, alive, rows)
        tensors["final_gradient"] = torch.stack(state_gradients).to(torch.float32)
        tensors["initial_gradient"] = torch.empty_like(tensors["final_gradient"])
        tensors["gradients"] = made = x.new_empty(rows, len(step.written) * H, dtype=torch.float32)
        shape = (len(step.accumulated), times.batch, H)
        tensors["totals"] = totals = x.new_empty(shape, dtype=torch.float32)
        self._launch("backward", times, tensors, x)
        if alive is not None:
            made = made[alive]
        sums = self._sums(made, totals)
        made, count, dx = made.to(self.dtype), len(self.program.inputs), None
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
                before[column] = value.reshape(-1, H).to(self.dtype)
            sums[outer] = self._outer(made, outer, before[column])
        found = self.columns.gradients(weights, sums)
        states = list(tensors["initial_gradient"].to(self.dtype, copy=True).unbind(0))
        return dx, states, {name: value.to(self.dtype) for name, value in found.items()}

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
