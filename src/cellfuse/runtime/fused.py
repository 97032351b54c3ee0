"""One direction of one layer on a CPU kernel: its memory, and one native call for the whole sequence.

No autograd here: see `library`. Longer than others because what the forward call leaves and the backward call
finds has to be read together.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cellfuse.cell import Cell
from cellfuse.codegen.cpu import large
from cellfuse.codegen.cpu.compile import Kernel, StepKernel
from cellfuse.codegen.cpu.driver import OUT, OUTER, RIGHT
from cellfuse.codegen.cpu.layout import Layout, Sizes
from cellfuse.codegen.cpu.target import host
from cellfuse.codegen.lower import lower
from cellfuse.codegen.program import Place
from cellfuse.runtime.case import Weights
from cellfuse.runtime.columns import INPUT, Columns, Outer
from cellfuse.runtime.kernel_call import SESSIONS, Session, copied, run_all
from cellfuse.runtime.once import Once
from cellfuse.runtime.times import Times

# A chunk of time steps is what stays in the second-level cache between the loop and the large products
# before and after it, and has rows enough for those products to read their matrices seldom; the products
# after the loop also write theirs. Half of the rows before the loop: 3 % on a Zen with 1 MB of that cache.
CHUNK = 1 << 19  # bytes
ROWS = 384

_LONGEST = 1 << 32  # multiplications, 0.06 s of them: Ctrl-C is heard between chunks only

# Multiplications, about 10 us of them, from which on another thread is worth starting.
_WORTH = 1 << 20

# Multiplications of a time step from which on threads share its units, and meet a few times. On two idle
# cores of a Xeon sharing is 1.1 times as fast from 50,000 on, 1.4 with 250,000, 2.7 with 1,000,000; but where
# another process has one of the cores, each meeting may wait for it.
_WORTH_MEETING = 150_000

# Rows from which on the sums of matrices' gradients are made in groups, as many as each has chunks: the error
# of sums whose terms have a mean is then a quarter to half of torch's at 40,000 rows, before 1.5 times. With
# fewer rows it is no larger than torch's, and one sum takes less memory.
_MANY = 4096

_NOTHING: Mapping[str, int] = {}


@dataclass(frozen=True)
class Kept:
    """What the forward loop leaves for the backward loop.

    Attributes:
        slabs: of each state [T + 1, B, width], the initial one at the end that is computed first.
        buffers: "products", "kept", "kept_numbers" and, if the output is no state, "output".
    """

    slabs: list[Tensor]
    buffers: dict[str, Tensor]


Forward = tuple[Tensor, list[Tensor], Kept | None]  # output, final states, what `backward` reads
Backward = tuple[Tensor | None, list[Tensor], dict[str, Tensor]]  # gradients of x, states, weights


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
        self.by_head = [outer for outer in self.columns.outers if outer.is_by_head]
        self._kernels: Once[Kernel] = Once()
        self._steps: Once[StepKernel] = Once()
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

    def _session(self, loop: str, x: Tensor, times: Times, share: int, needs_x: bool = False) -> Session:
        """A session for calls of these sizes; of the threads it gets one share."""
        rows, input_size = x.shape
        threads = torch.get_num_threads()
        is_packed = times.batch_sizes is not None
        sizes = (rows, times.steps, times.batch, input_size, threads)
        key = (self, loop, sizes, is_packed, times.is_reverse, needs_x, share)
        session = SESSIONS.take(key)
        if session is None:
            session = self.new_session(loop, rows, input_size, times, needs_x, share)
            session.key = key
        return session

    def new_session(
        self,
        loop: str,
        rows: int,
        input_size: int,
        times: Times,
        needs_x: bool = False,
        share: int = 1,
        more: Mapping[str, int] = _NOTHING,
    ) -> Session:
        """A session of its own, for a number of rows in all, with more working memory by name."""
        layout, kernel, batch, granted = self.layout, self._kernel(loop), times.batch, torch.get_num_threads()
        work = rows * (self.work + layout.strides["products"] * input_size)
        work *= 2 if loop == "backward" else 1
        threads = max(1, min(granted // share, work // _WORTH))
        strides, emitted, lanes = layout.strides, kernel.emitted, layout.lanes
        is_backward, gates = loop == "backward", len(self.program.inputs)
        chunk = self.chunk(loop, times, input_size)
        chunks = -(-times.steps // chunk)
        group = math.isqrt(chunks) if is_backward and rows > _MANY and chunks > 1 else 0
        rows = min(rows, chunk * batch)
        wide = -(-input_size // lanes) * lanes
        working = {name: strides[name] * batch for name in (f"{loop}_temp", f"{loop}_numbers")}
        working |= {f"{loop}_weights": emitted.weights[loop], "scratch": emitted.scratch * threads}
        working["gathered"] = emitted.gathered * batch
        working |= {name: strides[name] for name in ("parameters", "constants")}
        projects = bool(gates) and (not is_backward or self.recompute)
        if projects:
            working |= {"*panels": strides["products"] * input_size, "*bias": strides["products"]}
            if loop == "infer" or self.recompute:
                working["*products"] = rows * strides["products"]
        if loop == "infer":
            working |= {f"slab.{k}": 2 * batch * width for k, width in enumerate(self.widths)}
        outers, widths = ([*self.columns.native_outers] if is_backward else []), []
        if is_backward:
            if not self.by_head:
                working["*gradients"] = rows * strides["gradients"]
            if needs_x and gates:
                working["*turned_panels"] = gates * layout.sizes.hidden * wide
            steps = min(large.STEPS, rows)
            widths += [wide if outer.right is INPUT else self._right_width(outer) for outer in outers]
            working["*rights"] = steps * sum(widths)
            working |= dict.fromkeys(("sums", "*lost"), strides["gradients"])
            working["carry"] = strides["carry"] * batch
            last = min(large.LEFTS, strides["gradients"])
            working["*lefts"] = large.STEPS * (large.LEFTS * (threads - 1) + last)
            if group:
                ranges = map(self.columns.range, outers)
                numbers = [width * (high - low) for width, (low, high) in zip(widths, ranges, strict=True)]
                working["parts"] = sum(numbers)
        working |= more
        name = "backward" if is_backward else "forward"
        session = Session(
            self,
            name,
            working,
            2 * len(self.shapes) + 2 * len(self.program.step.inputs) + 8,
            2 * gates,
            threads,
        )
        session.plan(times.steps, chunk, work, granted > 1 and work > _WORTH)
        slots = layout.slots
        session.table[slots["origin"]] = times.steps - 1 if times.is_reverse else 0
        session.table[slots["direction"]] = -1 if times.is_reverse else 1
        session.table[slots["batch"]] = batch
        if projects:
            session.memory_of("*bias", strides["products"]).zero_()  # also where there are no units
        session.widths = widths
        session.outers = (ctypes.c_int64 * (len(OUTER) * len(outers)))()
        at, part = 0, session.address_of("parts") if "parts" in working else 0
        seen: dict[Place, int] = {}
        for k, outer in enumerate(outers):
            low, high = self.columns.range(outer)
            right_width = input_size if outer.right is INPUT else widths[k]
            column = (
                layout.offset("gradients", outer.right.column) if outer.right.buffer == "gradients" else 0
            )
            step = strides["gradients"] if outer.right.buffer == "gradients" else right_width
            place = seen.get(outer.right, at)
            row = {
                "left": low,
                "width": high - low,
                "column": column,
                "right_step": step,
                "right_width": right_width,
                "out_step": widths[k],
                "part": part,
                "packed": place,
                "is_packed": outer.right in seen,
            }
            values: list[Any] = [row.get(name, 0) for name in OUTER]
            session.outers[k * len(OUTER) : (k + 1) * len(OUTER)] = values
            part += widths[k] * (high - low) * self.size
            if outer.right not in seen:
                seen[outer.right] = at
                at += widths[k]
        shares_batch = threads == 1 or batch >= 8 * threads
        sharers = emitted.shareable.get(loop, 0)
        is_worth_meeting = sharers > 1 and batch * emitted.weights[loop] >= _WORTH_MEETING
        session.set(
            batch=batch,
            is_reverse=times.is_reverse,
            shares_batch=shares_batch,
            shares_units=0 if shares_batch or not is_worth_meeting else sharers,
            run=kernel.run_address[loop],
            pack=kernel.pack_address[loop],
            scratch_size=emitted.scratch,
            project=projects,
            input_size=input_size,
            gates=gates,
            groups=layout.groups("H"),
            units=layout.units("H"),
            per_group=layout.vectors("H"),
            products_step=strides["products"],
            products_whole=0,
            gradients_step=strides.get("gradients", 0),
            gradients_whole=bool(self.by_head),
            dx_step=wide,
            outers=ctypes.addressof(session.outers),
            outer_count=len(outers),
            group=group,
        )
        return session

    def _right_width(self, outer: Outer) -> int:
        return self.layout.width(self.columns.shape(outer.right))

    def chunk(self, loop: str, times: Times, input_size: int) -> int:
        """Time steps between the loop and the products around it."""
        numbers = self.layout.strides["products"]
        if loop == "backward":
            numbers = self.layout.strides["gradients"] + numbers * self.recompute
        least = ROWS if loop == "backward" else ROWS // 2
        rows = max(CHUNK // (self.size * max(numbers, 1)), least)
        rows = min(rows, _LONGEST // (self.work + numbers * input_size) + 1)
        size = max(1, rows // max(times.batch, 1))
        count = -(-times.steps // size)
        return -(-times.steps // count)

    def _give_weights(self, session: Session, times: Times, weights: Weights) -> list[Tensor]:
        """Point to the weights as they stand; returns what must live as long as the call."""
        columns, alive = self.columns, []
        for use in columns.uses:
            value = weights.get(use.name)
            if value is None:
                continue
            if not value.is_contiguous():
                value = value.contiguous()
                alive.append(value)
            session.bind(use, value.data_ptr(), value.shape)
        if columns.parameters and not columns.is_direct:
            parts = [columns.spread(columns.leaf(weights, n), ("H",)) for n in columns.parameters]
            alive.append(torch.cat(parts) if len(parts) > 1 else parts[0].contiguous())
            session.give("parameters", alive[-1])
        if columns.constants:
            alive.append(torch.stack([columns.leaf(weights, n) for n in columns.constants]))
            session.give("constants", alive[-1])
        for label, place in columns.masks.items():
            alive.append(columns.spread(weights[label], columns.shape(place)).contiguous())
            session.give(place.buffer, alive[-1])
        session.set_starts(times.starts)
        return alive

    def forward(self, *given: Any, keep: bool) -> Forward:
        """Run the cell over the sequence; see `forward_call`."""
        return run_all([self.forward_call(*given, keep=keep)])[0]

    def backward(self, *given: Any, needs_x: bool) -> Backward:
        """Gradients of x (unless it needs none), of the initial states and of each weight."""
        return run_all([self.backward_call(*given, needs_x=needs_x)])[0]

    def forward_call(
        self,
        x: Tensor,
        times: Times,
        states: list[Tensor],
        weights: Weights,
        *,
        keep: bool,
        share: int = 1,
    ) -> Generator[Session, None, Forward]:
        """Run the cell over the sequence, for `run_all`.

        Args:
            x: [N, I], rows of all time steps.
            states: initial, [B, width of the state].
            keep: write what `backward` reads.
            share: calls that run at the same time.

        Returns:
            output [T, B, H], or [N, H] for packed input; final states [B, ...]; what was kept.
        """
        loop, steps, batch, columns = "forward" if keep else "infer", times.steps, times.batch, self.columns
        session = self._session(loop, x, times, share)
        alive = self._give_weights(session, times, weights)
        rows, strides, buffers = x.shape[0], self.layout.strides, {}
        for name in ("kept", "kept_numbers", "output"):
            if strides.get(name) and (keep or name == "output"):
                buffers[name] = x.new_empty(rows, strides[name])
                session.give(name, buffers[name])
        if strides["products"] and keep and not self.recompute:
            buffers["products"] = x.new_empty(rows, strides["products"])
            session.set(products=buffers["products"].data_ptr(), products_whole=1)
        session.set(x=x.data_ptr())
        is_packed, place = times.batch_sizes is not None, self.program.output
        before, after, slabs, finals = [], [], [], []
        for k, state in enumerate(states):
            shape, width = self.shapes[k], self.widths[k]
            is_padded, size = columns.is_padded(shape), batch * width * self.size
            if is_padded or not state.is_contiguous():
                state = columns.spread(state, shape).contiguous()
                alive.append(state)
            last = 0 if times.is_reverse else steps - 1
            if keep or is_packed:
                slab = x.new_empty(steps + 1, batch, width)
                base = slab.data_ptr()
                initial = base + size * steps * times.is_reverse
                base += 0 if times.is_reverse else size
                if is_packed and times.is_reverse:
                    slab.copy_(state)  # sequences that end early begin their way back with it
                else:
                    before.append(copied(initial, state.data_ptr(), size))
                session.give_state(k, base, initial, -1)
            elif place == Place("after", k):
                slab = x.new_empty(steps, batch, width)
                base = slab.data_ptr()
                session.give_state(k, base, state.data_ptr(), -1)
            else:
                slab = session.memory_of(f"slab.{k}", 2 * batch * width).view(2, batch, width)
                base = slab.data_ptr()
                last &= 1
                session.give_state(k, base, state.data_ptr(), 1)
            slabs.append(slab)
            if not is_packed and not is_padded:
                finals.append(x.new_empty(batch, width))
                after.append(copied(finals[-1].data_ptr(), base + last * size, size))
        session.copy(before, after)
        yield session
        if len(finals) < len(states):
            finals = [
                columns.gather(self._final(slab, times, keep), shape).clone(
                    memory_format=torch.contiguous_format
                )
                for slab, shape in zip(slabs, self.shapes, strict=True)
            ]
        SESSIONS.give_back(session)
        if place.buffer == "after":
            output = self._states_of_rows(slabs[place.column], times, "after")
        else:
            output = buffers["output"]
            output = output if is_packed else output.view(steps, batch, -1)
        output = columns.gather(output, columns.shape(place)).contiguous()
        if not keep:
            return output, finals, None
        if share == 1 and not self.recompute:
            # Memory of its own, as `trained` gives it: what holds on to it, or changes it, shall not hold or
            # change what is kept. Of two directions the outputs are joined, which does the same.
            output = output.clone()
        return output, finals, Kept(slabs, buffers)

    def _states_of_rows(self, slab: Tensor, times: Times, which: str) -> Tensor:
        """The states before or after each time step: [T, B, width], or [N, width] if packed."""
        if len(slab) == times.steps:
            return slab
        is_early = (which == "before") != times.is_reverse
        if times.batch_sizes is None:
            return slab[:-1] if is_early else slab[1:]
        rows = times.alive() if is_early else times.alive() + times.batch
        return slab.flatten(0, 1)[rows]

    def _final(self, slab: Tensor, times: Times, keep: bool) -> Tensor:
        """A state after the last step of each sequence."""
        if times.batch_sizes is None:
            if keep:
                return slab[0 if times.is_reverse else -1]
            return slab[(0 if times.is_reverse else times.steps - 1) % len(slab)]
        if times.is_reverse:
            return slab[0].clone()
        sequences = torch.arange(times.batch, device=slab.device)
        lengths = (times.batch_sizes.unsqueeze(0) > sequences.unsqueeze(1)).sum(1)
        return slab[lengths, sequences]

    def backward_call(
        self,
        x: Tensor,
        times: Times,
        weights: Weights,
        kept: Kept,
        output_gradient: Tensor,
        state_gradients: list[Tensor],
        *,
        needs_x: bool,
        share: int = 1,
    ) -> Generator[Session, None, Backward]:
        """Gradients of x (unless it needs none), of the initial states and of each weight, for `run_all`."""
        columns, strides, gates = self.columns, self.layout.strides, len(self.program.inputs)
        session = self._session("backward", x, times, share, needs_x)
        alive = self._give_weights(session, times, weights)
        rows, size = x.shape[0], self.size
        session.set(x=x.data_ptr())
        before: dict[Place, Tensor | int] = {}
        for k, slab in enumerate(kept.slabs):
            base, step = slab.data_ptr(), times.batch * self.widths[k] * size
            first = base + step * times.steps * times.is_reverse
            session.give_state(k, base if times.is_reverse else base + step, first, -1)
            before[Place("before", k)] = base + step * times.is_reverse
        if times.batch_sizes is not None or self.by_head:
            for outer in columns.outers:
                if outer.right.buffer == "before":
                    value = self._states_of_rows(kept.slabs[outer.right.column], times, "before")
                    before[outer.right] = value.reshape(rows, -1)
        for name, value in kept.buffers.items():
            session.give(name, value)
        if "products" in kept.buffers:
            session.set(products=kept.buffers["products"].data_ptr(), products_whole=1)
        shape = columns.shape(Place("output_gradient", 0))
        alive.append(columns.spread(output_gradient, shape).contiguous())
        session.give("output_gradient", alive[-1])
        pairs = zip(state_gradients, self.shapes, strict=True)
        spread = [columns.spread(value, shape) for value, shape in pairs]
        carry = (
            torch.cat(spread, -1)
            if len(spread) > 1
            else spread[0].clone(memory_format=torch.contiguous_format)
        )
        session.give("carry", carry)
        gradients = x.new_empty(rows, strides["gradients"]) if self.by_head else None
        if gradients is not None:
            session.set(gradients=gradients.data_ptr())
        if strides["gradient_numbers"]:
            numbers = x.new_empty(rows, strides["gradient_numbers"])
            session.give("gradient_numbers", numbers)
        sums: dict[object, Tensor] = {"gradients": x.new_empty(strides["gradients"])}
        wide = -(-x.shape[1] // self.layout.lanes) * self.layout.lanes
        dx = None
        if needs_x:
            dx = x.new_empty(rows, wide) if gates else torch.zeros_like(x)
        session.set(sums=sums["gradients"].data_ptr(), dx=dx.data_ptr() if dx is not None and gates else 0)
        whole: dict[str, Tensor] = {}
        for k, (outer, low, high, target) in enumerate(columns.native):
            is_input, width = outer.right is INPUT, session.widths[k]
            if target is not None and (not is_input or wide == x.shape[1]):
                name, first = target
                if name not in whole:
                    whole[name] = x.new_empty(weights[name].shape)
                out = whole[name].data_ptr() + first * width * size
            else:
                sums["weight_ih" if is_input else outer] = made = x.new_empty(high - low, width)
                out = made.data_ptr()
            other = x if is_input else before.get(outer.right, 0)
            at = k * len(OUTER)
            session.outers[at + RIGHT] = other.data_ptr() if isinstance(other, Tensor) else other
            session.outers[at + OUT] = out
        session.copy((), ())
        yield session
        SESSIONS.give_back(session)
        if strides["gradient_numbers"]:
            sums["gradient_numbers"] = numbers.sum(0)
        for outer in self.by_head:
            assert gradients is not None
            found = before.get(outer.right)
            left = columns.column(gradients, outer.left, len(outer.labels))
            right = found if isinstance(found, Tensor) else columns.column(gradients, outer.right)
            heads = self.layout.sizes.heads
            left, right = (v.unflatten(1, (heads, -1)).transpose(0, 1) for v in (left, right))
            sums[outer] = torch.bmm(left.transpose(1, 2), right)
        if "weight_ih" in sums:
            value = columns.gather(sums["weight_ih"], ("H",), 0)
            sums["weight_ih"] = value if wide == x.shape[1] else value[:, : x.shape[1]].contiguous()
        for outer in columns.outers:
            if outer in sums:
                sums[outer] = self._matrix(sums[outer], outer)
        if dx is not None and dx.shape != x.shape:
            dx = dx[:, : x.shape[1]].contiguous()
        states = [
            columns.gather(columns.column(carry, Place("carry", k)), shape).contiguous()
            for k, shape in enumerate(self.shapes)
        ]
        return dx, states, columns.gradients(weights, sums, whole)

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
