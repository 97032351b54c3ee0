"""One direction of one layer, time step by time step: products by torch, one generated kernel after each.

For any cell, size and number format. No autograd here: see `op`. It runs wherever its launcher does.
Long, because a loop's memory, the graph that holds on to it and the launches that read it have to agree on
every buffer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cellfuse.cell import Cell
from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.codegen.cuda.kernel import Launcher
from cellfuse.codegen.cuda.launches import Multiplication, Pointwise
from cellfuse.codegen.cuda.layout import cuda_layout
from cellfuse.codegen.cuda.pointwise import is_stored, pointwise
from cellfuse.codegen.lower import lower
from cellfuse.codegen.program import Place
from cellfuse.runtime import graphs
from cellfuse.runtime.case import Weights
from cellfuse.runtime.columns import Columns
from cellfuse.runtime.fused import Kept
from cellfuse.runtime.graphs import Graphs
from cellfuse.runtime.precision import is_tf32, matmul_in, product_switches
from cellfuse.runtime.times import Times

# What is computed with, by what is stored.
REAL = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}


@dataclass
class Memory:
    """The tensors of one run of a loop.

    Attributes:
        tensors: by the name of the kernel's parameter.
        slabs: of each state [T + 1, B, width], the initial one at the end that is computed first.
        matrices: for each launch, for each of its products.
        is_fixed: whether a graph reads and writes it, so that every call has to put its values there and
            to copy what it gives away.
    """

    tensors: dict[str, Tensor]
    slabs: list[Tensor]
    matrices: list[list[Tensor]] = field(default_factory=list)
    is_fixed: bool = False

    def given_away(self, value: Tensor) -> Tensor:
        """A tensor of this memory for the caller."""
        return value.clone() if self.is_fixed else value


class PerStep:
    """A cell's step over time, for given sizes.

    Args:
        has_bias: of the layer.
        dtype: of the layer's tensors; states and sums of 16-bit layers are float32.
        launcher: of the device.
        recompute: the backward loop makes everything but the states again, input products included.
    """

    def __init__(
        self,
        cell: Cell,
        has_bias: bool,
        sizes: Sizes,
        dtype: torch.dtype,
        launcher: Launcher,
        recompute: bool = False,
    ) -> None:
        self.cell, self.dtype, self.real, self.launcher = cell, dtype, REAL[dtype], launcher
        self.recompute = recompute
        self.program = lower(cell.step if has_bias else cell.step_without_bias, recompute=recompute)
        self.layout = cuda_layout(self.program, sizes, 64 if self.real == torch.float64 else 32)
        self.columns = Columns(cell, self.layout)
        self.shapes = [leaf.shape for leaf in self.program.step.of_role("state")]
        self.widths = [self.layout.width(shape) for shape in self.shapes]
        self.graphs: Graphs[Memory] = Graphs()
        self.pointwise: Pointwise = pointwise(self.layout, str(dtype).removeprefix("torch."))

    # memory

    def dtype_of(self, name: str) -> torch.dtype:
        """Of the numbers in a buffer."""
        return self.dtype if is_stored(name) else self.real

    def shapes_of(self, loop: str, times: Times) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Of the tensors of one run of a loop over so many rows, but for masks."""
        rows = {"time": int(times.starts[-1]), "batch": times.batch, "once": 1}
        found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        masks = {place.buffer for place in self.columns.masks.values()}
        others = [name for name in ("infer", "forward", "backward") if name != loop]
        unread = {
            "infer": ("kept", "kept_numbers", "carry"),
            "forward": ("carry",),
            "backward": (),
        }[loop]
        for name, buffer in self.program.buffers.items():
            stride = self.layout.strides[name]
            is_other = name.startswith(tuple(f"{other}_" for other in others))
            is_gradient = loop != "backward" and "gradient" in name
            is_given = name == "states" or name in masks  # see `load_weights`
            if is_given or not stride or is_other or is_gradient or name in unread:
                continue
            found[name] = (rows[buffer.rows], stride), self.dtype_of(name)
        for k, width in enumerate(self.pointwise.results[loop]):
            found[f"results_{k}"] = (times.batch, width), self.dtype
        if self.pointwise.gathered:
            found["gathered"] = (self.pointwise.gathered, times.batch), self.real
        return found

    def bytes(self, loop: str, times: Times) -> int:
        """Of the memory of one run of a loop, the slabs of states included."""
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in self.shapes_of(loop, times).values()]
        return sum(sizes) + (times.steps + 1) * times.batch * sum(self.widths) * self.real.itemsize

    def memory(self, loop: str, times: Times, like: Tensor, kept: Kept | None = None) -> Memory:
        """Memory for one run of a loop; what the forward loop left is taken as it is."""
        tensors = {}
        for name, (shape, dtype) in self.shapes_of(loop, times).items():
            if kept is not None and name in kept.buffers:
                tensors[name] = kept.buffers[name].to(dtype)  # an operator's may be float32
            else:
                tensors[name] = like.new_empty(shape, dtype=dtype)
        if kept is not None:
            return Memory(tensors, kept.slabs)
        slabs = [like.new_empty(times.steps + 1, times.batch, w, dtype=self.real) for w in self.widths]
        return Memory(tensors, slabs)

    @contextmanager
    def _ready(
        self, loop: str, times: Times, like: Tensor, weights: Weights, kept: Kept | None = None
    ) -> Iterator[tuple[Memory, Callable[[], None]]]:
        """Memory that holds the weights and what was kept, and what runs the loop on it."""

        def make() -> Memory:
            memory = self.memory(loop, times, like)
            memory.is_fixed = True
            self.load_weights(memory, loop, weights)
            return memory

        key = self._key(loop, times, like)
        if key is not None and self.graphs.is_worth(key):
            with self.graphs.lock:
                size, run = self.bytes(loop, times), lambda memory: self.run(memory, loop, times)
                found = self.graphs.get(key, size, like.device, make, run)
                if found is not None:
                    self._load(found.memory, loop, weights, kept)
                    yield found.memory, found.replay
                    return
        memory = self.memory(loop, times, like, kept)
        self.load_weights(memory, loop, weights)
        yield memory, lambda: self.run(memory, loop, times)

    def _load(self, memory: Memory, loop: str, weights: Weights, kept: Kept | None) -> None:
        """Put what a call is given into the memory of a graph."""
        self.load_weights(memory, loop, weights)
        if kept is not None:
            for name, value in kept.buffers.items():
                memory.tensors[name].copy_(value)
            for slab, value in zip(memory.slabs, kept.slabs, strict=True):
                slab.copy_(value)

    def _key(self, loop: str, times: Times, like: Tensor) -> Hashable:
        """What a graph is for; None where there can be none."""
        if times.batch_sizes is not None or not graphs.can_capture(like.device):
            return None
        stream, products = graphs.stream_of(like.device), product_switches(self.cell)
        return loop, times.steps, times.batch, times.is_reverse, stream, products

    def load_weights(self, memory: Memory, loop: str, weights: Weights) -> None:
        """Put the weights where the kernels and products read them."""
        columns, tensors = self.columns, memory.tensors
        if columns.parameters:
            parts = [columns.leaf(weights, name).to(self.real) for name in columns.parameters]
            torch.cat(parts, out=tensors["parameters"][0])
        if columns.constants:
            values = [columns.leaf(weights, name).to(self.real) for name in columns.constants]
            torch.stack(values, out=tensors["constants"][0])
        for label, place in columns.masks.items():
            value = weights[label].reshape(-1, weights[label].shape[-1]).contiguous()
            if not memory.is_fixed:
                tensors[place.buffer] = value
            elif place.buffer in tensors:
                tensors[place.buffer].copy_(value)
            else:
                tensors[place.buffer] = value.clone()
        made = [
            [self._matrix(one, weights) for one in launch.products] for launch in self.pointwise.loops[loop]
        ]
        if not memory.is_fixed:
            memory.matrices = made
            return
        memory.matrices = memory.matrices or [[torch.empty_like(value) for value in each] for each in made]
        for to, each in zip(memory.matrices, made, strict=True):
            for target, value in zip(to, each, strict=True):
                target.copy_(value)

    def _matrix(self, one: Multiplication, weights: Weights) -> Tensor:
        """[in, out], or [N, in, out] by head: what an operand is multiplied with."""

        def block(label: str, is_transposed: bool) -> Tensor:
            value = self.columns.leaf(weights, label)
            if one.is_by_head:
                value = value.reshape(self.layout.sizes.heads, -1, value.shape[-1])
            return value if is_transposed else value.transpose(-1, -2)

        rows = [_joined([block(*each) for each in row], -1) for row in one.blocks]
        return _joined(rows, -2).detach()

    # one loop

    def run(self, memory: Memory, loop: str, times: Times) -> None:
        """All time steps of a loop."""
        launches, kernel = self.pointwise.loops[loop], self.pointwise.kernel
        names = [parameter.name for parameter in kernel.parameters[1:]]
        tensors, buffers = memory.tensors, self.program.buffers
        base = {name: tensors[name].data_ptr() if name in tensors else 0 for name in names}
        ahead = {
            name: value.stride(0) * value.element_size()
            for name, value in tensors.items()
            if name in buffers and buffers[name].rows == "time"
        }
        starts = times.starts.tolist()
        order = range(times.steps)
        if times.is_reverse != (loop == "backward"):
            order = order[::-1]
        for t in order:
            first, rows = starts[t], starts[t + 1] - starts[t]
            for name, size in ahead.items():
                base[name] = tensors[name].data_ptr() + first * size
            states = self._states(memory, times, t)
            base.update((name, value.data_ptr()) for name, value in states.items())
            arguments = [rows, *base.values()]
            for launch, matrices in zip(launches, memory.matrices, strict=True):
                for k, (one, matrix) in enumerate(zip(launch.products, matrices, strict=True)):
                    self._multiply(one, matrix, memory, states, first, rows, tensors[f"results_{k}"])
                self.launcher.launch(kernel, launch.entry, launch.grid(rows, kernel.threads), arguments)

    @staticmethod
    def _states(memory: Memory, times: Times, t: int) -> dict[str, Tensor]:
        """The states of all sequences before and after a time step."""
        after, before = (t, t + 1) if times.is_reverse else (t + 1, t)
        found = {f"before_{k}": slab[before] for k, slab in enumerate(memory.slabs)}
        return found | {f"after_{k}": slab[after] for k, slab in enumerate(memory.slabs)}

    def _multiply(
        self,
        one: Multiplication,
        matrix: Tensor,
        memory: Memory,
        states: dict[str, Tensor],
        first: int,
        rows: int,
        result: Tensor,
    ) -> None:
        place, layout = one.operand, self.layout
        if layout.is_state(place):
            value = states[f"{place.buffer}_{place.column}"][:rows]
        else:
            whole = memory.tensors[place.buffer]
            begin = first if self.program.buffers[place.buffer].rows == "time" else 0
            value = self.columns.column(whole[begin : begin + rows], place, len(one.blocks))
        value = value.to(self.dtype)
        out = result.view(-1)[: rows * matrix.shape[-1] * (layout.sizes.heads if one.is_by_head else 1)]
        if one.is_by_head:
            heads = layout.sizes.heads
            operand = value.unflatten(1, (heads, -1)).transpose(0, 1)
            torch.bmm(operand, matrix, out=out.view(heads, rows, -1))
        else:
            torch.mm(value, matrix, out=out.view(rows, -1))

    # forward

    def forward(
        self, x: Tensor, times: Times, states: list[Tensor], weights: Weights, *, keep: bool
    ) -> tuple[Tensor, list[Tensor], Kept | None]:
        """Run the cell over the sequence; arguments and results as `Fused.forward` has them."""
        with self._precision(x):
            return self._forward(x, times, states, weights, keep)

    def _precision(self, x: Tensor) -> AbstractContextManager:
        is_open = x.is_cuda and x.dtype == torch.float32
        return matmul_in(is_tf32(self.cell)) if is_open else nullcontext()

    def _forward(
        self, x: Tensor, times: Times, states: list[Tensor], weights: Weights, keep: bool
    ) -> tuple[Tensor, list[Tensor], Kept | None]:
        loop = "forward" if keep else "infer"
        with self._ready(loop, times, x, weights) as (memory, run):
            self._load_products(memory, x, weights)
            for slab, state in zip(memory.slabs, states, strict=True):
                # Sequences that end early begin their way back with the initial state.
                is_joined_late = times.is_reverse and times.batch_sizes is not None
                first = slab if is_joined_late else slab[-1 if times.is_reverse else 0]
                first.copy_(state.expand_as(first))
            run()
            return self._made(memory, times, keep)

    def _made(self, memory: Memory, times: Times, keep: bool) -> tuple[Tensor, list[Tensor], Kept | None]:
        """What `forward` gives."""
        place, finals = self.program.output, [_final(slab, times) for slab in memory.slabs]
        finals = [final.to(self.dtype, copy=True) for final in finals]
        names = ["kept", "kept_numbers", "output"] + ["products"] * (not self.recompute)
        tensors = {name: memory.given_away(memory.tensors[name]) for name in names if name in memory.tensors}
        slabs = [memory.given_away(slab) for slab in memory.slabs]
        if place.buffer == "after":
            output = self.of_rows(slabs[place.column], times, "after").to(self.dtype)
        else:
            output = tensors["output"]
            output = output if times.batch_sizes is not None else output.view(times.steps, times.batch, -1)
        return output.contiguous(), finals, Kept(slabs, tensors) if keep else None

    def _load_products(self, memory: Memory, x: Tensor, weights: Weights) -> None:
        """The input products of all time steps."""
        if not self.layout.strides["products"]:
            return
        weight, bias, out = weights["weight_ih"], self.columns.input_bias(weights), memory.tensors["products"]
        if bias is None:
            torch.mm(x, weight.t(), out=out)
        else:
            torch.addmm(bias, x, weight.t(), out=out)

    def of_rows(self, slab: Tensor, times: Times, which: str) -> Tensor:
        """The states before or after each time step: [T, B, width], or [N, width] if packed."""
        shift = int((which == "before") == times.is_reverse)
        if times.batch_sizes is None:
            return slab[shift : shift + times.steps]
        sizes = times.batch_sizes.tolist()
        return torch.cat([slab[t + shift, :size] for t, size in enumerate(sizes)])

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
        with self._ready("backward", times, x, weights, kept) as (memory, run):
            tensors = memory.tensors
            if self.recompute:
                self._load_products(memory, x, weights)
            tensors["output_gradient"].copy_(output_gradient.reshape(tensors["output_gradient"].shape))
            for k, value in enumerate(state_gradients):
                self.columns.column(tensors["carry"], Place("carry", k)).copy_(value)
            run()
            return self._after(memory, x, times, weights, needs_x)

    def _after(
        self, memory: Memory, x: Tensor, times: Times, weights: Weights, needs_x: bool
    ) -> tuple[Tensor | None, list[Tensor], dict[str, Tensor]]:
        """The large products and sums after the backward loop."""
        columns, tensors, count = self.columns, memory.tensors, len(self.program.inputs)
        made = tensors.get("gradients", x)
        sums: dict[object, Tensor] = {
            name: tensors[name].sum(0, dtype=self.real)
            for name in ("gradients", "gradient_numbers")
            if name in tensors
        }
        dx = None
        if needs_x and not count:
            dx = torch.zeros_like(x)
        if count:
            inputs = columns.column(made, Place("gradients", 0), count)
            sums["weight_ih"] = torch.mm(inputs.t(), x)
            if needs_x:
                dx = torch.mm(inputs, weights["weight_ih"])
        before: dict[Place, Tensor] = {}
        for outer in columns.outers:
            left = columns.column(made, outer.left, len(outer.labels))
            if outer.right.buffer != "before":
                right = columns.column(made, outer.right)
            else:
                if outer.right not in before:
                    rows = self.of_rows(memory.slabs[outer.right.column], times, "before")
                    before[outer.right] = rows.reshape(-1, rows.shape[-1]).to(self.dtype)
                right = before[outer.right]
            if outer.is_by_head:
                heads = self.layout.sizes.heads
                left, right = (v.unflatten(1, (heads, -1)).transpose(0, 1) for v in (left, right))
                sums[outer] = torch.bmm(left.transpose(1, 2), right).flatten(0, 1)
            else:
                sums[outer] = torch.mm(left.t(), right)
        found = columns.gradients(weights, sums)
        states = [
            columns.column(tensors["carry"], Place("carry", k)).to(self.dtype, copy=True).contiguous()
            for k in range(len(self.shapes))
        ]
        return dx, states, {name: value.to(self.dtype) for name, value in found.items()}


def _final(slab: Tensor, times: Times) -> Tensor:
    """A state after the last step of each sequence."""
    if times.is_reverse:
        return slab[0]
    if times.batch_sizes is None:
        return slab[-1]
    sizes = [*times.batch_sizes.tolist(), 0]
    # The sequences are sorted, the longest first.
    parts = [slab[t + 1, sizes[t + 1] : sizes[t]] for t in reversed(range(times.steps))]
    return torch.cat(parts)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]
