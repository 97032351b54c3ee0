"""Whole sequences with gradients by one call of the kernel each way, with tables and memory made before.

The sister of `whole`, for the directions of one layer. All that a direction keeps for the backward call
stands in one tensor. Long, because where the forward call keeps it and where the backward call finds it has
to be read together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cellfuse.codegen.cpu.driver import OUT, OUTER, RIGHT
from cellfuse.runtime.columns import INPUT
from cellfuse.runtime.direction import Direction, in_memory
from cellfuse.runtime.fused import Fused
from cellfuse.runtime.gradient_places import Out, products_of, rows_of, sums_of, whole_vectors
from cellfuse.runtime.kernel_call import (
    SESSIONS,
    Copy,
    Session,
    check_pointers,
    copied,
    copied_rows,
    laid_out,
    named,
    run_sessions,
)
from cellfuse.runtime.private import is_batched, is_forward_ad_active, is_functorch_active
from cellfuse.runtime.times import Times
from cellfuse.runtime.whole import bind_weights, is_plain_layout


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
        shapes: Mapping[str, torch.Size],
    ) -> None:
        self.directions, self.initial = directions, list(initial)
        self._zeros = [torch.zeros_like(state) for state in initial]
        self._ways = [_Way(fused, each, input_size, len(times), shapes) for each in times]
        way, count = self._ways[0], len(shapes)
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
        output, all_kept = self._like.new_empty(*self.output_shape), []
        finals = [torch.empty_like(state) for state in self.initial]
        source, start, pointers = x.data_ptr(), output.data_ptr(), _pointers(weights)
        check_pointers(pointers)
        begins, ends, sessions = _pointers(states or self.initial), _pointers(finals), []
        for k, (way, part) in enumerate(zip(self._ways, self.slices, strict=True)):
            kept = self._like.new_empty(way.total)
            all_kept.append(kept)
            tensors = [source, kept.data_ptr(), start + k * self._output_bytes]
            tensors += self._of(k, begins) + self._of(k, ends) + pointers[part]
            sessions.append(way.forward(tensors))
        run_sessions(sessions)
        for session in sessions:  # not after an interrupt, which may have left it half changed
            SESSIONS.give_back(session)
        return output, finals, all_kept

    def _of(self, direction: int, pointers: list[int]) -> list[int]:
        """Where a direction's part of each state begins; 0 where there is none."""
        if not direction:
            return pointers
        pairs = zip(pointers, self._state_bytes, strict=True)
        return [at and at + direction * size for at, size in pairs]

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
        dense = [None if value is None else _dense(value) for value in gradients]
        output_gradient = dense[0] if dense[0] is not None else self._like.new_zeros(self.output_shape)
        states = [
            torch.empty_like(value) if is_needed else None
            for value, is_needed in zip(self.initial, needs_states, strict=True)
        ]
        found: list[Tensor | None] = [torch.empty_like(w) if needs_weights else None for w in weights]
        given = [zero if value is None else value for value, zero in zip(dense[1:], self._zeros, strict=True)]
        wanted, of_weights, of_finals = _pointers(states), _pointers(found), _pointers(given)
        source, start, pointers = x.data_ptr(), output_gradient.data_ptr(), _pointers(weights)
        check_pointers(pointers)
        what = needs_x, tuple(needs_states), needs_weights
        sessions, dxs = [], []
        for k, (way, part) in enumerate(zip(self._ways, self.slices, strict=True)):
            dx = torch.empty_like(x) if needs_x else None
            dxs.append(dx)
            tensors = [source, all_kept[k].data_ptr(), start + k * self._output_bytes]
            tensors.append(0 if dx is None else dx.data_ptr())
            tensors += self._of(k, of_finals) + self._of(k, wanted) + pointers[part] + of_weights[part]
            sessions.append(way.backward(tensors, what))
        run_sessions(sessions)
        for session in sessions:
            SESSIONS.give_back(session)
        dx = dxs[0]
        for other in dxs[1:]:
            dx = None if dx is None or other is None else dx.add_(other)
        return [dx, *states, *found]


def _pointers(values: Sequence[Tensor | None]) -> list[int]:
    return [0 if value is None else value.data_ptr() for value in values]


def _dense(value: Tensor) -> Tensor:
    if value.is_contiguous() and not value.is_neg() and not value._is_zerotensor():
        return value
    return in_memory(value).contiguous()


# Of a backward call: whether the gradients of the input, of each state and of the weights are needed.
What = tuple[bool, tuple[bool, ...], bool]


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
        fused: Fused,
        times: Times,
        input_size: int,
        directions: int,
        shapes: Mapping[str, torch.Size],
    ) -> None:
        self.fused, self.times, self.shapes = fused, times, shapes
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
        moves = times.steps, batch, times.is_reverse
        self._key = (fused, *moves, input_size, directions, torch.get_num_threads())
        parts = {f"slab.{k}": (times.steps + 1) * batch * width for k, width in enumerate(fused.widths)}
        names = ("products", "kept", "kept_numbers", "output")
        parts |= {name: self.rows * strides[name] for name in names if strides.get(name)}
        places, self.total = laid_out(parts, size)
        self._places = {name: place * size for name, place in places.items()}  # of what is kept, in bytes
        place = fused.program.output
        shape = columns.shape(place)
        self.output_units = columns.units(shape)
        self._output_line, self._output_wide = self.output_units * size, fused.layout.width(shape) * size
        self._output_at = self._places["output"] if place.buffer != "after" else self._after(place.column)

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

    def forward(self, tensors: list[int]) -> Session:
        """A session for the way forward with all addresses: where x, what is kept, output, initial and final
        states and weights begin."""
        session = SESSIONS.take(("forward", *self._key)) or self._new_forward()
        session.point(tensors)
        return session

    def backward(self, tensors: list[int], what: What) -> Session:
        """A session for the way back with all addresses: where x, what is kept, the output's gradient, dx,
        gradients of the final states and of the initial ones, weights and their gradients begin; 0 for what
        is not there."""
        session = SESSIONS.take(("backward", *self._key, what)) or self._new_backward(what)
        session.point(tensors)
        return session

    def _new_session(
        self,
        loop: str,
        x: int,
        base: int,
        weights: Mapping[str, int],
        more: dict[str, int],
        needs_x: bool = False,
    ) -> tuple[Session, list[Copy]]:
        """A session that knows the input, the weights and what is kept; and the copies before its loop."""
        given = self.rows, self.input_size, self.times, needs_x, self.directions, more
        session = self.fused.new_session(loop, *given)
        session.set_starts(self.times.starts)
        before = bind_weights(self.fused, session, weights, self.shapes)
        places = self._places
        for k in range(len(self._lines)):
            session.give_state(k, base + self._after(k), base + self._initial(k), -1)
        for name in ("products", "kept", "kept_numbers", "output"):
            if name in places:
                session.table[session.slots[name]] = base + places[name]
        session.set(x=x, products=base + places["products"], products_whole=1)
        return session, before

    def _new_forward(self) -> Session:
        count, names, batch = len(self._lines), list(self.shapes), self.times.batch
        total = 3 + 2 * count + len(names)
        x, base, output, *others = map(named, range(total))
        states, finals, weights = others[:count], others[count : 2 * count], others[2 * count :]
        padded = [k for k, (line, wide, _) in enumerate(self._lines) if line != wide]
        more = {f"padded.{k}": batch * self.fused.widths[k] for k in padded}
        of_names = dict(zip(names, weights, strict=True))
        session, before = self._new_session("forward", x, base, of_names, more)
        session.key, after = ("forward", *self._key), []
        for k, (line, wide, slab) in enumerate(self._lines):
            source, to = states[k], base + self._initial(k)
            if k in padded:
                source = session.address_of(f"padded.{k}")
                session.memory_of(f"padded.{k}", more[f"padded.{k}"]).zero_()
                before.append(copied_rows(source, states[k], line, batch, wide, line))
            before.append(copied(to, source, slab))
            after.append(copied_rows(finals[k], base + self._final(k), line, batch, line, wide))
        line, wide = self._output_line, self._output_wide
        step = self.directions * line
        after.append(copied_rows(output, base + self._output_at, line, self.rows, step, wide))
        session.copy(before, after)
        session.find_named(total)
        return session

    def _new_backward(self, what: What) -> Session:
        needs_x, are_needed, needs_weights = what
        fused, size, batch, count = self.fused, self.fused.size, self.times.batch, len(self._lines)
        names = list(self.shapes)
        total = 4 + 2 * count + 2 * len(names)
        x, base, output_gradient, dx, *others = map(named, range(total))
        of_finals, of_initial, others = others[:count], others[count : 2 * count], others[2 * count :]
        weights = dict(zip(names, others, strict=False))
        outs, wide_input = products_of(fused, names, self.input_size), whole_vectors(fused, self.input_size)
        line, wide = self._output_line, self._output_wide
        more: dict[str, int] = {}
        if self.directions > 1 or line != wide:
            more["output_gradient"] = self.rows * wide // size
        if needs_x and wide_input != self.input_size:
            more["wide dx"] = self.rows * wide_input
        more |= {f"out.{k}": out.numbers for k, out in enumerate(outs) if out.numbers}
        session, before = self._new_session("backward", x, base, weights, more, needs_x)
        session.key, after = ("backward", *self._key, what), []
        # Their padding is read by no product, but may hold numbers that are slow.
        more["carry"] = fused.layout.strides["carry"] * batch
        for name in {"output_gradient", "carry"} & set(more):
            session.memory_of(name, more[name]).zero_()
        if "output_gradient" in more:
            to = session.address_of("output_gradient")
            before.append(copied_rows(to, output_gradient, line, self.rows, wide, self.directions * line))
        else:
            session.table[session.slots["output_gradient"]] = output_gradient
        carry, carry_step = session.address_of("carry"), fused.layout.strides["carry"] * size
        session.table[session.slots["carry"]] = carry
        for k, (line, wide, _) in enumerate(self._lines):
            before.append(copied_rows(carry, of_finals[k], line, batch, carry_step, line))
            if are_needed[k]:
                after.append(copied_rows(of_initial[k], carry, line, batch, line, carry_step))
            carry += wide
        sums, to_dx = session.address_of("sums"), dx if needs_x else 0
        if "wide dx" in more:
            line, to_dx = self.input_size * size, session.address_of("wide dx")
            after.append(copied_rows(dx, to_dx, line, self.rows, line, wide_input * size))
        session.set(sums=sums, dx=to_dx, outer_count=len(outs) if needs_weights else 0)
        if needs_weights:
            made = dict(zip(names, others[len(names) :], strict=True))
            after += self._made_after(session, outs, x, base, sums, made)
        session.copy(before, after)
        session.find_named(total)
        return session

    def _made_after(
        self, session: Session, outs: Sequence[Out], x: int, base: int, sums: int, made: Mapping[str, int]
    ) -> list[Copy]:
        """Point the products to the weights' gradients; returns the copies that make the others."""
        after = []
        for k, out in enumerate(outs):
            at, first = k * len(OUTER), out.pieces[0]
            target = session.address_of(f"out.{k}") if out.numbers else made[first.name] + first.to
            session.outers[at + OUT] = target
            if out.right is INPUT:
                session.outers[at + RIGHT] = x
            elif out.right.buffer == "before":
                session.outers[at + RIGHT] = base + self._before(out.right.column)
            for piece in out.pieces if out.numbers else ():
                to, source, line = made[piece.name] + piece.to, target + piece.source, piece.line
                after.append(copied_rows(to, source, line, piece.rows, line, piece.step))
        made_whole = {piece.name for out in outs for piece in out.pieces}
        for name, to in made.items():
            parts = None if name in made_whole else sums_of(self.fused, name)
            for begin, line, count, step in parts or ():
                after.append(copied_rows(to, sums + begin, line, count, line, step))
                to += line * count
        return after


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
        x, *weights = map(_dense, (values[0], *values[1 + count :]))
        needs_states = needed[1 : 1 + count] if count else [False] * len(made.initial)
        needs_weights = any(needed[1 + count :])
        dense = [*map(_dense, kept)]
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
