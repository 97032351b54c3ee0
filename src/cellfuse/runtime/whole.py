"""Whole sequences without gradients by one call of the kernel, with tables and memory made before.

For the directions of one layer; what `fused` does for every case, with nothing left to decide at a call.
Weights are read where they stand, at every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cellfuse.codegen.program import Place
from cellfuse.runtime.fused import Fused
from cellfuse.runtime.kernel_call import AT, SESSIONS, Copy, Session, copied_rows, run_sessions
from cellfuse.runtime.times import Times


def parameter_copies(fused: Fused, session: Session, names: Sequence[str]) -> list[tuple[int, Copy]]:
    """(place among the names, copy whose source is counted from that weight's start) of parameters that have
    to stand side by side."""
    columns, layout, size = fused.columns, fused.layout, fused.size
    found: list[tuple[int, Copy]] = []
    if columns.is_direct:
        return found
    for buffer, labels in (("parameters", columns.parameters), ("constants", columns.constants)):
        for column, label in enumerate(labels):
            name, first, _ = columns.sources[label]
            to = session.address_of(buffer) + layout.offset(buffer, column) * size
            groups, units, padded = columns.lengths(fused.program.buffers[buffer].columns[column])
            line, wide = units * size, padded * size
            found.append((names.index(name), copied_rows(to, first * size, line, groups, wide, line)))
    return found


def at_weights(copies: Sequence[tuple[int, Copy]], weights: Sequence[Tensor]) -> list[Copy]:
    """Those copies of the weights as they stand."""
    return [(to, weights[k].data_ptr() + first, *rest) for k, (to, first, *rest) in copies]  # type: ignore[misc]


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
        names: of the weights of a direction.
    """

    def __init__(
        self,
        fused: Fused,
        times: Sequence[Times],
        input_size: int,
        initial: Sequence[Tensor],
        names: Sequence[str],
    ) -> None:
        self.initial = list(initial)
        self._like = torch.empty(0, dtype=fused.dtype, device="cpu")
        self._ways = [_Way(fused, each, input_size, names, len(times)) for each in times]
        way, count = self._ways[0], len(names)
        self._output_shape = times[0].steps, times[0].batch, len(times) * way.output_units
        self._state_bytes = [times[0].batch * units * fused.size for units in way.units]
        self._output_bytes = way.output_units * fused.size
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
        output, source = self._like.new_empty(self._output_shape), x.data_ptr()
        finals = [torch.empty_like(state) for state in self.initial]
        ends = [final.data_ptr() for final in finals]
        begins = [state.data_ptr() for state in states or self.initial]
        start, sessions = output.data_ptr(), []
        for way, part in zip(self._ways, self._slices, strict=True):
            sessions.append(way.point(source, begins, start, ends, weights[part]))
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
        units: numbers of each state for the user, for one sequence.
        output_units: the same of the output.
    """

    def __init__(
        self, fused: Fused, times: Times, input_size: int, names: Sequence[str], directions: int
    ) -> None:
        self._fused, self._times, self._input_size = fused, times, input_size
        self._names, self._directions = names, directions
        columns, place, size = fused.columns, fused.program.output, fused.size
        shape, batch = columns.shape(place), times.batch
        self.units = [columns.units(shape) for shape in fused.shapes]
        self.output_units = columns.units(shape)
        self._output_width = fused.layout.width(shape)
        # The output is written where it goes unless there is padding or another direction beside it.
        self._is_copied = directions > 1 or self._output_width != self.output_units
        self._padded = [k for k, width in enumerate(fused.widths) if width != self.units[k]]
        self._plain = [
            (k, fused.layout.slots[f"initial.{k}"]) for k in range(len(self.units)) if k not in self._padded
        ]
        slots = fused.layout.slots
        self._output_slots: list[int] = []
        if not self._is_copied:
            name = f"states.{place.column}" if place.buffer == "after" else "output"
            self._output_slots.append(slots[name])
        # (bytes of a row, rows, steps between rows) of the states
        pairs = zip(self.units, fused.widths, strict=True)
        self._lines = [(units * size, batch, units * size, wide * size) for units, wide in pairs]
        by_name = {use.name: use for use in columns.uses}
        self._uses = [(k, by_name.get(name)) for k, name in enumerate(names)]
        moves = times.steps, batch, times.is_reverse
        self._key = ("whole", fused, *moves, input_size, directions, torch.get_num_threads())

    def _session(self) -> Session:
        """A session for a call, of another layer perhaps."""
        session = SESSIONS.take(self._key)
        if session is not None:
            return session
        fused, times, batch, size = self._fused, self._times, self._times.batch, self._fused.size
        rows, place = times.steps * batch, fused.program.output
        more = {f"initial.{k}": batch * fused.widths[k] for k in self._padded}
        more |= {"gathered output": rows * self._output_width} if self._is_copied else {}
        session = fused.new_session("infer", rows, self._input_size, times, share=self._directions, more=more)
        session.key = self._key
        session.set_starts(times.starts)
        session.bound = [-1] * len(self._names)  # an address that no tensor has
        kept = session.address_of("gathered output") if self._is_copied else 0
        if place.buffer != "after":
            session.table[session.slots["output"]] = kept
        padded = {}
        for k in self._padded:
            session.memory_of(f"initial.{k}", more[f"initial.{k}"]).zero_()
            padded[k] = session.address_of(f"initial.{k}")
        finals: list[tuple[int, bool]] = []
        last = 0 if times.is_reverse else times.steps - 1
        for k, wide in enumerate(fused.widths):
            step = batch * wide * size
            if place == Place("after", k):
                session.give_state(k, kept, padded.get(k, 0), -1)
                finals.append((kept + last * step, not self._is_copied))
            else:
                base = session.address_of(f"slab.{k}")
                session.give_state(k, base, padded.get(k, 0), 1)
                finals.append((base + (last & 1) * step, False))
        parameters = parameter_copies(fused, session, self._names)
        session.prepared = _Prepared(parameters, list(padded.items()), finals, kept)
        return session

    def point(
        self, x: int, states: Sequence[int], output: int, finals: Sequence[int], weights: Sequence[Tensor]
    ) -> Session:
        """A session with all addresses filled in."""
        session = self._session()
        table, prepared, bound = session.table, session.prepared, session.bound
        for k, use in self._uses:
            pointer = weights[k].data_ptr()
            if pointer != bound[k]:
                if use is not None:
                    session.bind(use, weights[k])
                bound[k] = pointer
        before = at_weights(prepared.parameters, weights)
        for k, slot in self._plain:
            table[slot] = states[k]
        for k, to in prepared.padded:
            size, rows, step, wide = self._lines[k]
            before.append(copied_rows(to, states[k], size, rows, wide, step))
        for slot in self._output_slots:
            table[slot] = output
        after = [
            copied_rows(final, source + output if is_inside else source, *lines)
            for final, (source, is_inside), lines in zip(finals, prepared.finals, self._lines, strict=True)
        ]
        if self._is_copied:
            size, times = self._fused.size, self._times
            line, rows = self.output_units * size, times.steps * times.batch
            steps = self._directions * line, self._output_width * size
            after.append(copied_rows(output, prepared.output, line, rows, *steps))
        session.copy(before, after)
        session.call[AT["x"]] = x
        return session


@dataclass(frozen=True)
class _Prepared:
    """What depends on where a session's memory is.

    Attributes:
        parameters: see `parameter_copies`.
        padded: of each state with padding, where its initial value goes.
        finals: where each final state stands, and whether that is counted from the output's start.
        output: where the output stands, if it is copied.
    """

    parameters: list[tuple[int, Copy]]
    padded: list[tuple[int, int]]
    finals: list[tuple[int, bool]]
    output: int
