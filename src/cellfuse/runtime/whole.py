"""Whole sequences without gradients by one call of the kernel, with tables and memory made before.

For the directions of one layer; what `fused` does for every case, with nothing left to decide at a call.
Weights are read where they stand, at every call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cellfuse.codegen.program import Place
from cellfuse.runtime.fused import Fused
from cellfuse.runtime.kernel_call import (
    AT,
    SESSIONS,
    Copy,
    Session,
    check_pointers,
    copied_rows,
    named,
    run_sessions,
)
from cellfuse.runtime.times import Times


def bind_weights(
    fused: Fused, session: Session, weights: Mapping[str, int], shapes: Mapping[str, torch.Size]
) -> list[Copy]:
    """Point to weights by name; returns the copies, before the loop, of those that have to stand side by
    side."""
    columns, layout, size = fused.columns, fused.layout, fused.size
    for use in columns.uses:
        if use.name in weights:
            session.bind(use, weights[use.name], shapes[use.name])
    found: list[Copy] = []
    if columns.is_direct:
        return found
    for buffer, labels in (("parameters", columns.parameters), ("constants", columns.constants)):
        for column, label in enumerate(labels):
            name, first, _ = columns.sources[label]
            to = session.address_of(buffer) + layout.offset(buffer, column) * size
            groups, units, padded = columns.lengths(fused.program.buffers[buffer].columns[column])
            line = units * size
            found.append(copied_rows(to, weights[name] + first * size, line, groups, padded * size, line))
    return found


def is_plain_layout(fused: Fused) -> bool:
    """Whether each value's padding, if it has one, stands behind its units: there is one group of them."""
    columns = fused.columns
    shapes = [("H",), *fused.shapes, columns.shape(fused.program.output)]
    return not any(columns.is_padded(shape) and columns.lengths(shape)[0] > 1 for shape in shapes)


class Whole:
    """The calls for one size.

    Args:
        times: of each direction.
        initial: the initial states where a call is given none, [D, B, width] each.
        shapes: of a direction's weights by name.
    """

    def __init__(
        self,
        fused: Fused,
        times: Sequence[Times],
        input_size: int,
        initial: Sequence[Tensor],
        shapes: Mapping[str, torch.Size],
    ) -> None:
        self.initial = list(initial)
        self._like = torch.empty(0, dtype=fused.dtype, device="cpu")
        self._ways = [_Way(fused, each, input_size, shapes, len(times)) for each in times]
        way, count = self._ways[0], len(shapes)
        self._output_shape = times[0].steps, times[0].batch, len(times) * way.output_units
        self._output_bytes, self._state_bytes = way.output_units * fused.size, way.state_bytes
        self._slices = [slice(k * count, (k + 1) * count) for k in range(len(times))]

    def run(
        self, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """(output [T, B, D * width], final states [D, B, width]) from plain tensors.

        Args:
            x: [T, B, I].
            states: the initial ones; empty: those given before.
            weights: of all directions, in the order of their names.
        """
        output, source = self._like.new_empty(*self._output_shape), x.data_ptr()
        finals = [torch.empty_like(state) for state in self.initial]
        ends = [final.data_ptr() for final in finals]
        begins = [state.data_ptr() for state in states or self.initial]
        pointers = [weight.data_ptr() for weight in weights]
        check_pointers(pointers)
        start, sessions = output.data_ptr(), []
        for way, part in zip(self._ways, self._slices, strict=True):
            sessions.append(way.point([source, start, *begins, *ends, *pointers[part]]))
            if len(self._ways) > 1:
                begins = [at + size for at, size in zip(begins, self._state_bytes, strict=True)]
                ends = [at + size for at, size in zip(ends, self._state_bytes, strict=True)]
                start += self._output_bytes
        run_sessions(sessions)
        for session in sessions:  # not after an interrupt, which may have left it half changed
            SESSIONS.give_back(session)
        return output, finals


class _Way:
    """One direction.

    Attributes:
        output_units: numbers of the output for the user, for one time step and sequence.
        state_bytes: of each state, for the user.
    """

    def __init__(
        self,
        fused: Fused,
        times: Times,
        input_size: int,
        shapes: Mapping[str, torch.Size],
        directions: int,
    ) -> None:
        self._fused, self._times, self._input_size = fused, times, input_size
        self._shapes, self._directions = shapes, directions
        units = [fused.columns.units(shape) for shape in fused.shapes]
        self.state_bytes = [times.batch * each * fused.size for each in units]
        # Bytes of a row of each state, for the user and in memory.
        pairs = zip(units, fused.widths, strict=True)
        self._lines = [(each * fused.size, width * fused.size) for each, width in pairs]
        self.output_units = fused.columns.units(fused.columns.shape(fused.program.output))
        moves = times.steps, times.batch, times.is_reverse
        self._key = ("whole", fused, *moves, input_size, directions, torch.get_num_threads())

    def point(self, tensors: list[int]) -> Session:
        """A session with all addresses: where x, output, states, final states and weights begin."""
        session = SESSIONS.take(self._key) or self._new_session()  # perhaps of another layer
        session.point(tensors)
        return session

    def _new_session(self) -> Session:
        fused, times, size, batch = self._fused, self._times, self._fused.size, self._times.batch
        rows, place = times.steps * batch, fused.program.output
        units, width = self.output_units, fused.layout.width(fused.columns.shape(place))
        # The output is written where it goes unless there is padding or another direction beside it.
        is_copied = self._directions > 1 or width != units
        padded = [k for k, (line, wide) in enumerate(self._lines) if line != wide]
        more = {f"initial.{k}": batch * fused.widths[k] for k in padded}
        more |= {"gathered output": rows * width} if is_copied else {}
        session = fused.new_session("infer", rows, self._input_size, times, share=self._directions, more=more)
        session.key = self._key
        session.set_starts(times.starts)
        count = len(self._lines)
        total = 2 + 2 * count + len(self._shapes)
        x, output, *others = map(named, range(total))
        states, finals, weights = others[:count], others[count : 2 * count], others[2 * count :]
        before = bind_weights(fused, session, dict(zip(self._shapes, weights, strict=True)), self._shapes)
        session.call[AT["x"]] = x
        kept = session.address_of("gathered output") if is_copied else output
        if place.buffer != "after":
            session.table[session.slots["output"]] = kept
        last, after = 0 if times.is_reverse else times.steps - 1, []
        for k, (line, wide) in enumerate(self._lines):
            initial = states[k]
            if k in padded:
                initial = session.address_of(f"initial.{k}")
                session.memory_of(f"initial.{k}", more[f"initial.{k}"]).zero_()
                before.append(copied_rows(initial, states[k], line, batch, wide, line))
            if place == Place("after", k):
                slabs, final = kept, last
                session.give_state(k, slabs, initial, -1)
            else:
                slabs, final = session.address_of(f"slab.{k}"), last & 1
                session.give_state(k, slabs, initial, 1)
            after.append(copied_rows(finals[k], slabs + final * batch * wide, line, batch, line, wide))
        if is_copied:
            steps = self._directions * units * size, width * size
            after.append(copied_rows(output, kept, units * size, rows, *steps))
        session.copy(before, after)
        session.find_named(total)
        return session
