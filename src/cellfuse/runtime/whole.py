"""Whole sequences without gradients by one call of the kernel, with tables and memory made before.

For the directions of one layer; what `fused` does for every case, with nothing left to decide at a call.
Weights are read where they stand, at every call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cellfuse.codegen.program import Place
from cellfuse.runtime.fused import Fused
from cellfuse.runtime.kernel_call import AT, Copy, Session, copied_rows, run_sessions
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
    """The calls for one size; not for several threads at a time.

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
        self.sessions = [way.session for way in self._ways]
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
        start = output.data_ptr()
        for way, part in zip(self._ways, self._slices, strict=True):
            way.point(source, begins, start, ends, weights[part])
            begins = [at + size for at, size in zip(begins, self._state_bytes, strict=True)]
            ends = [at + size for at, size in zip(ends, self._state_bytes, strict=True)]
            start += self._output_bytes
        run_sessions(self.sessions)
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
        steps, batch, size, columns = times.steps, times.batch, fused.size, fused.columns
        place = fused.program.output
        shape, rows = columns.shape(place), steps * batch
        self.units = [columns.units(shape) for shape in fused.shapes]
        self.output_units = columns.units(shape)
        width = fused.layout.width(shape)
        # The output is written where it goes unless there is padding or another direction beside it.
        is_copied = directions > 1 or width != self.output_units
        padded = [k for k, width in enumerate(fused.widths) if width != self.units[k]]
        more = {f"initial.{k}": batch * fused.widths[k] for k in padded}
        more |= {"gathered output": rows * width} if is_copied else {}
        self.session = session = fused.new_session(
            "infer", rows, input_size, times, share=directions, more=more
        )
        session.set_starts(times.starts)
        self._parameters = parameter_copies(fused, session, names)
        kept = session.address_of("gathered output") if is_copied else 0
        if place.buffer != "after":
            session.table[session.slots["output"]] = kept
        is_plain_output = not is_copied and place.buffer != "after"
        self._output_slots = [session.slots["output"]] if is_plain_output else []
        self._padded = [(k, session.address_of(f"initial.{k}")) for k in padded]
        self._plain = [(k, session.slots[f"initial.{k}"]) for k in range(len(self.units)) if k not in padded]
        self._finals: list[tuple[int, bool]] = []  # (where, whether counted from the output's start)
        last = 0 if times.is_reverse else steps - 1
        for k, wide in enumerate(fused.widths):
            step = batch * wide * size
            if place == Place("after", k):
                session.give_state(k, kept, dict(self._padded).get(k, 0), -1)
                self._finals.append((kept + last * step, not is_copied))
                if not is_copied:
                    self._output_slots.append(session.slots[f"states.{k}"])
            else:
                base = session.address_of(f"slab.{k}")
                session.give_state(k, base, dict(self._padded).get(k, 0), 1)
                self._finals.append((base + (last & 1) * step, False))
        # (bytes of a row, rows, steps between rows) of the states and of the output
        pairs = zip(self.units, fused.widths, strict=True)
        self._lines = [(units * size, batch, units * size, wide * size) for units, wide in pairs]
        line = self.output_units * size
        self._output_lines = (kept, line, rows, directions * line, width * size) if is_copied else None
        by_name = {use.name: use for use in columns.uses}
        self._bound = [-1] * len(names)  # an address that no tensor has
        self._uses = [(k, by_name.get(name)) for k, name in enumerate(names)]

    def point(
        self, x: int, states: Sequence[int], output: int, finals: Sequence[int], weights: Sequence[Tensor]
    ) -> None:
        """Fill in addresses."""
        session, table = self.session, self.session.table
        for k, use in self._uses:
            pointer = weights[k].data_ptr()
            if pointer != self._bound[k]:
                if use is not None:
                    session.bind(use, weights[k])
                self._bound[k] = pointer
        before = at_weights(self._parameters, weights)
        for k, slot in self._plain:
            table[slot] = states[k]
        for k, to in self._padded:
            size, rows, step, wide = self._lines[k]
            before.append(copied_rows(to, states[k], size, rows, wide, step))
        for slot in self._output_slots:
            table[slot] = output
        after = [
            copied_rows(final, source + output if is_inside else source, *lines)
            for final, (source, is_inside), lines in zip(finals, self._finals, self._lines, strict=True)
        ]
        if self._output_lines:
            after.append(copied_rows(output, *self._output_lines))
        session.copy(before, after)
        session.call[AT["x"]] = x
