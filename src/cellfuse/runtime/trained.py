"""Whole sequences with gradients by one call of the kernel each way, with tables and memory made before.

The sister of `whole`, for the same layers. All that is kept for the backward call stands in one tensor.
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
from cellfuse.runtime.kernel_call import AT, SESSIONS, Session
from cellfuse.runtime.private import is_batched
from cellfuse.runtime.times import Times
from cellfuse.runtime.whole import Whole, at_weights, parameter_copies


class Trained:
    """The calls for one size; `forward` is not for several threads at a time, `backward` is.

    Args:
        direction: what is computed.
        initial: the initial states where a call is given none, [1, B, width] each.
        shapes: of the weights by name.
    """

    def __init__(
        self,
        direction: Direction,
        fused: Fused,
        times: Times,
        input_size: int,
        initial: Sequence[Tensor],
        shapes: dict[str, torch.Size],
    ) -> None:
        self.direction, self.fused, self.times, self.dtype = direction, fused, times, fused.dtype
        self.initial, self.input_size, self.shapes = list(initial), input_size, shapes
        self.names = direction.names
        self.rows = times.steps * times.batch
        self.session = fused.new_session("forward", self.rows, input_size, times)
        self._parameters = parameter_copies(fused, self.session, self.names)
        strides, size = fused.layout.strides, fused.size
        self._places: dict[str, int] = {}  # of the parts of what is kept, in numbers
        total = 0
        for k, width in enumerate(fused.widths):
            self._places[f"slab.{k}"] = total
            total += (times.steps + 1) * times.batch * width + 15 & -16
        for name in ("products", "kept", "kept_numbers", "output"):
            if strides.get(name):
                self._places[name] = total
                total += self.rows * strides[name] + 15 & -16
        self.total = total
        place, width = fused.program.output, fused.layout.width(fused.columns.shape(fused.program.output))
        self._output_shape = (times.steps, times.batch, width)
        self._output_at = (
            self._places["output"]
            if place.buffer != "after"
            else (self._places[f"slab.{place.column}"] + times.batch * fused.widths[place.column])
        )
        self._uses = [
            (self.names.index(use.name), use) for use in fused.columns.uses if use.name in self.names
        ]
        steps = [times.batch * width * size for width in fused.widths]
        self._step_bytes = steps
        self._like = torch.empty(0, dtype=fused.dtype, device="cpu")
        # (weight, parts of the summed gradients) of those that are no product.
        self._summed = [(name, _summed_parts(fused, name)) for name in self.names]
        self._targets = {target[0] for _, _, _, target in fused.columns.native if target is not None}

    @staticmethod
    def is_possible(fused: Fused, input_size: int, names: Sequence[str]) -> bool:
        """Whether every gradient is a product of the driver's or a run of its sums."""
        columns = fused.columns
        if not Whole.is_possible(fused) or fused.by_head or fused.recompute or not fused.program.inputs:
            return False
        if input_size % fused.layout.lanes or fused.layout.strides["gradient_numbers"]:
            return False
        targets = [target for _, _, _, target in columns.native]
        if None in targets:
            return False
        whole = {target[0] for target in targets if target is not None}
        return all(name in whole or _summed_parts(fused, name) is not None for name in names)

    def _point(self, session: Session, x: Tensor, weights: Sequence[Tensor], base: int) -> None:
        """Fill in addresses of the input, the weights and what is kept."""
        session.set_starts(self.times.starts)
        for k, use in self._uses:
            session.bind(use, weights[k])
        session.call[AT["x"]] = x.data_ptr()
        size, places, table = self.fused.size, self._places, session.table
        for k, step in enumerate(self._step_bytes):
            first = base + places[f"slab.{k}"] * size
            session.give_state(k, first + step, first, -1)
        for name in ("products", "kept", "kept_numbers", "output"):
            if name in places:
                table[session.slots[name]] = base + places[name] * size
        session.call[AT["products"]] = base + places["products"] * size
        session.call[AT["products_whole"]] = 1

    def forward(
        self, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """(output, final states, what is kept)."""
        session, kept = self.session, self._like.new_empty(self.total)
        base = kept.data_ptr()
        self._point(session, x, weights, base)
        before, after, finals = at_weights(self._parameters, weights), [], []
        for k, (state, step) in enumerate(zip(states or self.initial, self._step_bytes, strict=True)):
            first = base + self._places[f"slab.{k}"] * self.fused.size
            before.append((first, state.data_ptr(), step))
            final = torch.empty_like(self.initial[k])
            after.append((final.data_ptr(), first + step * self.times.steps, step))
            finals.append(final)
        # The output has memory of its own: what holds on to it shall not hold what is kept, too.
        output = self._like.new_empty(self._output_shape)
        numbers = output.numel() * self.fused.size
        after.append((output.data_ptr(), base + self._output_at * self.fused.size, numbers))
        session.copy(before, after)
        session.run()
        return output, finals, kept

    def backward(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        kept: Tensor,
        gradients: Sequence[Tensor | None],
        needs_x: bool,
        needs_states: Sequence[bool],
        needs_weights: bool,
    ) -> list[Tensor | None]:
        """Gradients of x, of the states (None where not needed) and of the weights."""
        fused, size = self.fused, self.fused.size
        key = (self, needs_x, torch.get_num_threads())
        session = SESSIONS.take(key)
        if session is None:
            session = fused.new_session("backward", self.rows, self.input_size, self.times, needs_x)
            session.memory_of("zeros", max(self._step_bytes) // size).zero_()
            session.key = key
        session.set(outer_count=len(fused.columns.native) if needs_weights else 0)
        self._point(session, x, weights, kept.data_ptr())
        output_gradient = gradients[0]
        if output_gradient is None:
            output_gradient = self._like.new_zeros(self._output_shape)
        output_gradient = output_gradient.contiguous()
        session.give("output_gradient", output_gradient)
        before, after, alive = self._carry(session, gradients[1:])
        before += at_weights(parameter_copies(fused, session, self.names), weights)
        dx = torch.empty_like(x, memory_format=torch.contiguous_format) if needs_x else None
        sums = session.address_of("sums")
        session.set(sums=sums, dx=dx.data_ptr() if dx is not None else 0)
        new_empty = self._like.new_empty
        whole: dict[str, Tensor] = {}
        for k, (outer, _, _, target) in enumerate(fused.columns.native if needs_weights else ()):
            assert target is not None
            name, first = target
            made = whole.get(name)
            if made is None:
                made = whole[name] = new_empty(self.shapes[name])
            at, width = k * len(OUTER), session.widths[k]
            session.outers[at + OUT] = made.data_ptr() + first * width * size
            if outer.right is INPUT:
                session.outers[at + RIGHT] = x.data_ptr()
            elif outer.right.buffer == "before":
                session.outers[at + RIGHT] = (
                    kept.data_ptr() + self._places[f"slab.{outer.right.column}"] * size
                )
        found: list[Tensor | None] = []
        for name, parts in self._summed if needs_weights else ():
            value = whole.get(name)
            if value is None:
                assert parts is not None
                value = new_empty(self.shapes[name])
                to = value.data_ptr()
                for first, numbers in parts:
                    after.append((to, sums + first * size, numbers * size))
                    to += numbers * size
            found.append(value)
        states = self._state_gradients(session, needs_states, after)
        session.copy(before, after)
        session.run()
        states = [None if state is None else state() for state in states]
        SESSIONS.give_back(session)
        del alive
        return [dx, *states, *(found or [None] * len(self.names))]

    def _carry(
        self, session: Session, gradients: Sequence[Tensor | None]
    ) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]], list[Tensor]]:
        """Copies of the states' gradients to where the loop begins with them."""
        at, before, alive = session.address_of("carry"), [], []
        session.table[session.slots["carry"]] = at
        is_dense = self.times.batch == 1 or len(gradients) == 1
        if not is_dense and any(gradient is not None for gradient in gradients):
            whole = torch.cat(
                [
                    self.initial[k].new_zeros(self.initial[k].shape) if gradient is None else gradient
                    for k, gradient in enumerate(gradients)
                ],
                -1,
            )
            return [(at, whole.data_ptr(), sum(self._step_bytes))], [], [whole]
        zeros = session.address_of("zeros")
        for gradient, step in zip(gradients, self._step_bytes, strict=True):
            source = zeros
            if gradient is not None:
                alive.append(gradient.contiguous())
                source = alive[-1].data_ptr()
            before.append((at, source, step))
            at += step
        return before, [], alive

    def _state_gradients(
        self, session: Session, needed: Sequence[bool], after: list[tuple[int, int, int]]
    ) -> list[Any]:
        """What gives each state's gradient after the run; None where it is not needed."""
        found: list[Any] = []
        size, batch, widths = self.fused.size, self.times.batch, self.fused.widths
        at = 0
        for k, is_needed in enumerate(needed):
            if not is_needed:
                found.append(None)
            elif batch == 1 or len(widths) == 1:
                value = torch.empty_like(self.initial[k])
                after.append((value.data_ptr(), session.address_of("carry") + at * size, self._step_bytes[k]))
                found.append(lambda value=value: value)
            else:
                carry = session.memory_of("carry", batch * sum(widths)).view(1, batch, -1)
                part = carry.narrow(2, at, widths[k])
                found.append(lambda part=part: part.clone(memory_format=torch.contiguous_format))
            at += widths[k]
        return found


def _summed_parts(fused: Fused, name: str) -> list[tuple[int, int]] | None:
    """(first number, numbers) of the sums that make a weight's gradient; None if it is made otherwise."""
    offsets, parts = fused.layout.offsets["gradients"], []
    for source, first, count in fused.columns.recipe(name):
        if source != "gradients":
            return None
        parts.append((offsets[first], offsets[first + count] - offsets[first]))
    return parts or None


def run(
    made: Trained, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """(output [T, B, width], final states [1, B, width]) with gradients; no states: the initial ones."""
    output, *finals = _Sequence.apply(made, len(states), x, *states, *weights)
    return output, finals


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, made: Trained, count: int, x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        output, finals, kept = made.forward(x, values[:count], values[count:])
        ctx.made, ctx.count = made, count
        ctx.save_for_backward(x, *values, kept)
        ctx.set_materialize_grads(False)
        return output, *finals

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        made, count = ctx.made, ctx.count
        *values, kept = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        is_special = torch.is_grad_enabled() or any(g is not None and is_batched(g) for g in gradients)
        if is_special:
            return None, None, *_differentiable(made, count, values, gradients)
        # Hooks of saved tensors may give them back in another layout.
        x, *weights = (value.contiguous() for value in (values[0], *values[1 + count :]))
        needs_states = needed[1 : 1 + count] if count else [False] * len(made.initial)
        needs_weights = any(needed[1 + count :])
        dx, *rest = made.backward(
            x, weights, kept.contiguous(), gradients, needed[0], needs_states, needs_weights
        )
        if not count:
            rest = rest[len(made.initial) :]
        return None, None, dx, *rest


def _differentiable(
    made: Trained, count: int, values: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> list[Tensor]:
    """The gradients by a formula that can be differentiated again."""
    x, states, weights = values[0], values[1 : 1 + count], values[1 + count :]
    initial = [state.squeeze(0) for state in (states or made.initial)]
    shapes = [made._output_shape, *(state.shape for state in made.initial)]
    full = [x.new_zeros(s) if g is None else g for g, s in zip(gradients, shapes, strict=True)]
    full = [full[0], *(g.squeeze(0) for g in full[1:])]
    found = made.direction.formula_gradients(full, (x, *initial, *weights), None)
    states_found = [value.unsqueeze(0) for value in found[1 : 1 + len(initial)]]
    return [found[0], *(states_found if count else ()), *found[1 + len(initial) :]]
