"""Whole sequences with gradients by one call of the kernel each way, with tables and memory made before.

The sister of `whole`, for the directions of one layer. All that a direction keeps for the backward call
stands in one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cellfuse.codegen.cpu.driver import OUT, OUTER, RIGHT
from cellfuse.runtime.columns import INPUT
from cellfuse.runtime.direction import Direction
from cellfuse.runtime.fused import Fused
from cellfuse.runtime.gradient_places import products_of, rows_of, sums_of, whole_vectors
from cellfuse.runtime.kernel_call import AT, SESSIONS, Session, copied, copied_rows, run_sessions
from cellfuse.runtime.private import is_batched, is_forward_ad_active, is_functorch_active
from cellfuse.runtime.times import Times
from cellfuse.runtime.whole import at_weights, is_plain_layout, parameter_copies


class Trained:
    """The calls for one size.

    Args:
        directions: what is computed.
        times: of each direction.
        initial: the initial states where a call is given none, [D, B, width] each.
        shapes: of a direction's weights by name.
    """

    def __init__(
        self,
        directions: Sequence[Direction],
        fused: Fused,
        times: Sequence[Times],
        input_size: int,
        initial: Sequence[Tensor],
        shapes: dict[str, torch.Size],
    ) -> None:
        self.directions, self.initial, self.names = directions, list(initial), directions[0].names
        self._ways = [_Way(self.names, fused, each, input_size, len(times), shapes) for each in times]
        way, count = self._ways[0], len(self.names)
        self._like = way.like
        self.output_shape = times[0].steps, times[0].batch, len(times) * way.output_units
        self._output_bytes, self._state_bytes = way.output_units * fused.size, way.state_bytes
        self.slices = [slice(k * count, (k + 1) * count) for k in range(len(times))]

    @staticmethod
    def is_possible(fused: Fused, names: Sequence[str]) -> bool:
        """Whether every gradient is a product of the driver's or a run of its sums."""
        if not is_plain_layout(fused) or fused.by_head or fused.recompute or not fused.program.inputs:
            return False
        if fused.layout.strides["gradient_numbers"]:
            return False
        return all(rows_of(fused, name) or sums_of(fused, name) for name in names)

    def run(
        self, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """As `Whole.run`, with gradients."""
        output, *finals = _Sequence.apply(self, len(states), x, *states, *weights)
        return output, finals

    def forward(
        self, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """(output [T, B, D * width], final states [D, B, width], what each direction keeps)."""
        # The output has memory of its own: what holds on to it shall not hold what is kept, too.
        output, all_kept = self._like.new_empty(self.output_shape), []
        finals = [torch.empty_like(state) for state in self.initial]
        given, sessions = states or self.initial, []
        for k, (way, part) in enumerate(zip(self._ways, self.slices, strict=True)):
            kept = self._like.new_empty(way.total)
            all_kept.append(kept)
            start = output.data_ptr() + k * self._output_bytes
            ends = self._at(finals, k)
            sessions.append(way.point_forward(x, self._at(given, k), weights[part], kept, start, ends))
        run_sessions(sessions)
        for session in sessions:  # not after an interrupt, which may have left it half changed
            SESSIONS.give_back(session)
        return output, finals, all_kept

    def _at(self, values: Sequence[Tensor | None], direction: int) -> list[int]:
        """Where a direction's part of each state begins; 0 where there is none."""
        pairs = zip(values, self._state_bytes, strict=True)
        return [0 if value is None else value.data_ptr() + direction * size for value, size in pairs]

    def backward(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        all_kept: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        needs_x: bool,
        needs_states: Sequence[bool],
        needs_weights: bool,
    ) -> list[Tensor | None]:
        """Gradients of x, of the states (None where not needed) and of the weights."""
        dense = [None if value is None else value.resolve_neg().contiguous() for value in gradients]
        output_gradient = dense[0] if dense[0] is not None else self._like.new_zeros(self.output_shape)
        states = [
            torch.empty_like(value) if is_needed else None
            for value, is_needed in zip(self.initial, needs_states, strict=True)
        ]
        sessions, dxs, found = [], [], []
        for k, (way, part) in enumerate(zip(self._ways, self.slices, strict=True)):
            dx = torch.empty_like(x, memory_format=torch.contiguous_format) if needs_x else None
            start = output_gradient.data_ptr() + k * self._output_bytes
            of_states = self._at(dense[1:], k), self._at(states, k)
            session, made = way.point_backward(
                x, weights[part], all_kept[k], start, *of_states, dx, needs_weights
            )
            sessions.append(session)
            dxs.append(dx)
            found += made
        run_sessions(sessions)
        for session in sessions:
            SESSIONS.give_back(session)
        dx = dxs[0]
        for other in dxs[1:]:
            dx = None if dx is None or other is None else dx.add_(other)
        return [dx, *states, *found]


class _Way:
    """One direction.

    Attributes:
        like: an empty tensor of the kernel's numbers.
        total: numbers that are kept.
        output_units: numbers of the output, for the user, for one time step and sequence.
        state_bytes: of each state, for the user.
    """

    def __init__(
        self,
        names: Sequence[str],
        fused: Fused,
        times: Times,
        input_size: int,
        directions: int,
        shapes: dict[str, torch.Size],
    ) -> None:
        self.names, self.fused, self.times, self.shapes = names, fused, times, shapes
        self.input_size, self.directions = input_size, directions
        self.like = torch.empty(0, dtype=fused.dtype, device="cpu")
        self.rows = times.steps * times.batch
        columns, strides, size, batch = fused.columns, fused.layout.strides, fused.size, times.batch
        units = [columns.units(shape) for shape in fused.shapes]
        self.state_bytes = [batch * each * size for each in units]
        # Of each state in bytes: of a row for the user, of a row, of a slab in memory.
        self._lines = [
            (each * size, width * size, batch * width * size)
            for each, width in zip(units, fused.widths, strict=True)
        ]
        self._padded = [k for k, (line, wide, _) in enumerate(self._lines) if line != wide]
        moves = times.steps, batch, times.is_reverse
        self._key = (fused, *moves, input_size, directions, torch.get_num_threads())
        self._places: dict[str, int] = {}  # of the parts of what is kept, in bytes
        total = 0
        for k, width in enumerate(fused.widths):
            self._places[f"slab.{k}"] = total * size
            total += (times.steps + 1) * batch * width + 15 & -16
        for name in ("products", "kept", "kept_numbers", "output"):
            if strides.get(name):
                self._places[name] = total * size
                total += self.rows * strides[name] + 15 & -16
        self.total = total
        place = fused.program.output
        shape = columns.shape(place)
        self.output_units = columns.units(shape)
        self._output_line, self._output_wide = self.output_units * size, fused.layout.width(shape) * size
        self._output_at = self._places["output"] if place.buffer != "after" else self._after(place.column)
        self._uses = [(self.names.index(use.name), use) for use in columns.uses if use.name in self.names]
        self._wide_input = whole_vectors(fused, input_size)
        self._outs = products_of(fused, self.names, input_size)
        # (weight, runs of the summed gradients) of those that are no product.
        made_whole = {piece.name for out in self._outs for piece in out.pieces}
        self._summed = [(n, None if n in made_whole else sums_of(fused, n)) for n in self.names]

    def _before(self, k: int) -> int:
        """Where a state's slabs as the steps find them begin, by time, in what is kept."""
        return self._places[f"slab.{k}"] + self._lines[k][2] * self.times.is_reverse

    def _after(self, k: int) -> int:
        """The same of the slabs as the steps leave them."""
        return self._places[f"slab.{k}"] + self._lines[k][2] * (not self.times.is_reverse)

    def _initial(self, k: int) -> int:
        """Where a state's initial value stands."""
        return self._before(k) + self._lines[k][2] * (self.times.steps - 1) * self.times.is_reverse

    def _final(self, k: int) -> int:
        """Where its final value stands."""
        return self._after(k) + self._lines[k][2] * (self.times.steps - 1) * (not self.times.is_reverse)

    def _point(self, session: Session, x: Tensor, weights: Sequence[Tensor], base: int) -> None:
        """Fill in addresses of the input, the weights and what is kept."""
        session.set_starts(self.times.starts)
        for k, use in self._uses:
            session.bind(use, weights[k])
        session.call[AT["x"]] = x.data_ptr()
        places, table = self._places, session.table
        for k in range(len(self._lines)):
            session.give_state(k, base + self._after(k), base + self._initial(k), -1)
        for name in ("products", "kept", "kept_numbers", "output"):
            if name in places:
                table[session.slots[name]] = base + places[name]
        session.call[AT["products"]] = base + places["products"]
        session.call[AT["products_whole"]] = 1

    def point_forward(
        self,
        x: Tensor,
        states: Sequence[int],
        weights: Sequence[Tensor],
        kept: Tensor,
        output: int,
        finals: Sequence[int],
    ) -> Session:
        """A session for the way forward with all addresses."""
        session, base, batch = self._forward_session(), kept.data_ptr(), self.times.batch
        self._point(session, x, weights, base)
        before, after = at_weights(session.prepared, weights), []
        for k, (line, wide, slab) in enumerate(self._lines):
            source, to = states[k], base + self._initial(k)
            if k in self._padded:
                source = session.address_of(f"padded.{k}")
                before.append(copied_rows(source, states[k], line, batch, wide, line))
            before.append(copied(to, source, slab))
            after.append(copied_rows(finals[k], base + self._final(k), line, batch, line, wide))
        line, wide = self._output_line, self._output_wide
        step = self.directions * line
        after.append(copied_rows(output, base + self._output_at, line, self.rows, step, wide))
        session.copy(before, after)
        return session

    def _new_session(self, loop: str, key: object, more: dict[str, int], needs_x: bool = False) -> Session:
        given = self.rows, self.input_size, self.times, needs_x, self.directions, more
        session = self.fused.new_session(loop, *given)
        session.key, session.prepared = key, parameter_copies(self.fused, session, self.names)
        return session

    def _forward_session(self) -> Session:
        key = ("forward", *self._key)
        session = SESSIONS.take(key)
        if session is None:
            more = {f"padded.{k}": self.times.batch * self.fused.widths[k] for k in self._padded}
            session = self._new_session("forward", key, more)
            for name, numbers in more.items():
                session.memory_of(name, numbers).zero_()
        return session

    def _backward_session(self, needs_x: bool) -> Session:
        key, size = ("backward", *self._key, needs_x), self.fused.size
        session = SESSIONS.take(key)
        if session is not None:
            return session
        more = {"zeros": max(wide for _, wide, _ in self._lines) // size}
        if self.directions > 1 or self._output_line != self._output_wide:
            more["output_gradient"] = self.rows * self._output_wide // size
        if needs_x and self._wide_input != self.input_size:
            more["wide dx"] = self.rows * self._wide_input
        for k, out in enumerate(self._outs):
            if out.numbers:
                more[f"out.{k}"] = out.numbers
        session = self._new_session("backward", key, more, needs_x)
        more["carry"] = self.fused.layout.strides["carry"] * self.times.batch
        for name in {"zeros", "output_gradient", "carry"} & set(more):  # their padding is read by no product,
            session.memory_of(name, more[name]).zero_()  # but may hold numbers that are slow
        return session

    def point_backward(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        kept: Tensor,
        output_gradient: int,
        state_gradients: Sequence[int],
        states: Sequence[int],
        dx: Tensor | None,
        needs_weights: bool,
    ) -> tuple[Session, list[Tensor | None]]:
        """A session for the way back with all addresses, and the weights' gradients it will write."""
        fused, size, batch, base = self.fused, self.fused.size, self.times.batch, kept.data_ptr()
        session = self._backward_session(dx is not None)
        self._point(session, x, weights, base)
        before, after = at_weights(session.prepared, weights), []
        zeros, line, wide = session.address_of("zeros"), self._output_line, self._output_wide
        if "output_gradient" in session.places:
            to = session.address_of("output_gradient")
            before.append(copied_rows(to, output_gradient, line, self.rows, wide, self.directions * line))
        else:
            session.table[session.slots["output_gradient"]] = output_gradient
        carry, carry_step = session.address_of("carry"), fused.layout.strides["carry"] * size
        session.table[session.slots["carry"]] = carry
        for k, (line, wide, _) in enumerate(self._lines):
            given = state_gradients[k]
            source, step = (given, line) if given else (zeros, 0)
            before.append(copied_rows(carry, source, line, batch, carry_step, step))
            if states[k]:
                after.append(copied_rows(states[k], carry, line, batch, line, carry_step))
            carry += wide
        sums, to_dx = session.address_of("sums"), dx.data_ptr() if dx is not None else 0
        if "wide dx" in session.places:
            source, line = session.address_of("wide dx"), self.input_size * size
            after.append(copied_rows(to_dx, source, line, self.rows, line, self._wide_input * size))
            to_dx = source
        session.set(sums=sums, dx=to_dx, outer_count=len(self._outs) if needs_weights else 0)
        if not needs_weights:
            session.copy(before, after)
            return session, [None] * len(self.names)
        found = [self.like.new_empty(self.shapes[name]) for name in self.names]
        at_name = {name: value.data_ptr() for name, value in zip(self.names, found, strict=True)}
        for k, out in enumerate(self._outs):
            at = k * len(OUTER)
            target = session.address_of(f"out.{k}") if out.numbers else at_name[out.pieces[0].name]
            session.outers[at + OUT] = target + (0 if out.numbers else out.pieces[0].to)
            if out.right is INPUT:
                session.outers[at + RIGHT] = x.data_ptr()
            elif out.right.buffer == "before":
                session.outers[at + RIGHT] = base + self._before(out.right.column)
            if out.numbers:
                for p in out.pieces:
                    to, source = at_name[p.name] + p.to, target + p.source
                    after.append(copied_rows(to, source, p.line, p.rows, p.line, p.step))
        for name, parts in self._summed:
            to = at_name[name]
            for first, line, count, step in parts or ():
                after.append(copied_rows(to, sums + first, line, count, line, step))
                to += line * count
        session.copy(before, after)
        return session, found  # type: ignore[return-value]


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, made: Trained, count: int, x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        output, finals, kept = made.forward(x, values[:count], values[count:])
        ctx.made, ctx.count = made, count
        ctx.save_for_backward(x, *values, *kept)
        ctx.set_materialize_grads(False)
        return output, *finals

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        made, count = ctx.made, ctx.count
        saved, directions = ctx.saved_tensors, len(made.directions)
        values, kept = saved[:-directions], saved[-directions:]
        needed = ctx.needs_input_grad[2:]
        is_transformed = is_functorch_active() or is_forward_ad_active()
        is_transformed = is_transformed or any(g is not None and is_batched(g) for g in gradients)
        if is_transformed or torch.is_grad_enabled():
            return None, None, *_differentiable(made, count, values, gradients)
        # Hooks of saved tensors may give them back in another layout.
        x, *weights = (value.resolve_neg().contiguous() for value in (values[0], *values[1 + count :]))
        needs_states = needed[1 : 1 + count] if count else [False] * len(made.initial)
        needs_weights = any(needed[1 + count :])
        dense = [value.resolve_neg().contiguous() for value in kept]
        dx, *rest = made.backward(x, weights, dense, gradients, needed[0], needs_states, needs_weights)
        if not count:
            rest = rest[len(made.initial) :]
        return None, None, dx, *rest


def _differentiable(
    made: Trained, count: int, values: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> list[Tensor]:
    """The gradients by a formula that can be differentiated again."""
    x, states, weights = values[0], values[1 : 1 + count] or made.initial, values[1 + count :]
    shapes = [made.output_shape, *(state.shape for state in made.initial)]
    full = [x.new_zeros(s) if g is None else g for g, s in zip(gradients, shapes, strict=True)]
    outputs = full[0].chunk(len(made.directions), -1)
    found = []
    for k, (direction, part) in enumerate(zip(made.directions, made.slices, strict=True)):
        given = outputs[k], *(gradient[k] for gradient in full[1:])
        mine = x, *(state[k] for state in states), *weights[part]
        found.append(direction.formula_gradients(given, mine, None))
    first = 1 + len(states)
    of_states = [torch.stack([each[k] for each in found]) for k in range(1, first)] if count else []
    dx = sum((each[0] for each in found[1:]), found[0][0])
    return [dx, *of_states, *(value for each in found for value in each[first:])]
