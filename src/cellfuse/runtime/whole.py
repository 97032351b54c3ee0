"""Whole sequences without gradients by one call of the kernel, with tables and memory made before.

For one layer in one direction whose units fill whole vectors; what `fused` does for every case, with nothing
left to decide at a call. Weights are read where they stand, at every call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cellfuse.codegen.program import Place
from cellfuse.runtime.fused import Fused
from cellfuse.runtime.kernel_call import AT, Session
from cellfuse.runtime.times import Times


def parameter_copies(fused: Fused, session: Session, names: Sequence[str]) -> list[tuple[int, int, int, int]]:
    """(place among the names, first byte, to, bytes) of parameters that have to stand side by side."""
    columns, size = fused.columns, fused.size
    found: list[tuple[int, int, int, int]] = []
    if columns.is_direct:
        return found
    for buffer, labels in (("parameters", columns.parameters), ("constants", columns.constants)):
        for column, label in enumerate(labels):
            name, first, _ = columns.sources[label]
            to = session.address_of(buffer) + fused.layout.offset(buffer, column) * size
            numbers = fused.layout.width(fused.program.buffers[buffer].columns[column])
            found.append((names.index(name), first * size, to, numbers * size))
    return found


def at_weights(
    copies: Sequence[tuple[int, int, int, int]], weights: Sequence[Tensor]
) -> list[tuple[int, int, int]]:
    """Those copies, (to, from, bytes), of the weights as they stand."""
    return [(to, weights[k].data_ptr() + first, size) for k, first, to, size in copies]


class Whole:
    """The calls for one size; not for several threads at a time.

    Args:
        initial: the initial states where a call is given none, [1, B, width] each.
        names: of the weights of the layer.
    """

    def __init__(
        self, fused: Fused, times: Times, input_size: int, initial: Sequence[Tensor], names: Sequence[str]
    ) -> None:
        steps, batch, size = times.steps, times.batch, fused.size
        self.session = session = fused.new_session("infer", steps * batch, input_size, times)
        self.times, self.initial, self.dtype = times, list(initial), fused.dtype
        session.set_starts(times.starts)
        columns, place = fused.columns, fused.program.output
        output = columns.shape(place)
        self._like = torch.empty(0, dtype=fused.dtype, device="cpu")
        self._output_shape = steps, batch, fused.layout.width(output)
        self._output_slots: list[int] = []  # entries of the kernel's table that point to the output
        self._initial_slots = [session.slots[f"initial.{k}"] for k in range(len(fused.widths))]
        self._last_of_output: list[tuple[int, int]] = []  # (entry of copies, bytes behind the output's start)
        if place.buffer != "after":
            self._output_slots.append(session.slots["output"])
        copies = []
        for k, width in enumerate(fused.widths):
            step = batch * width * size
            if place == Place("after", k):
                self._output_slots.append(session.slots[f"states.{k}"])
                self._last_of_output.append((3 * k + 1, (steps - 1) * step))
                session.give_state(k, 0, 0, -1)
                copies.append((0, 0, step))
            else:
                base = session.address_of(f"slab.{k}")
                session.give_state(k, base, 0, 1)
                copies.append((0, base + (steps - 1 & 1) * step, step))
        self._parameters = parameter_copies(fused, session, names)
        self._copies = copies
        by_name = {use.name: use for use in columns.uses}
        self._is_bound = False
        self._bound = [-1] * len(names)  # an address that no tensor has
        self._uses = [(k, by_name.get(name)) for k, name in enumerate(names)]

    @staticmethod
    def is_possible(fused: Fused) -> bool:
        """Whether nothing has to be padded or gathered before a call."""
        columns = fused.columns
        shapes = [("H",), *fused.shapes, columns.shape(fused.program.output)]
        return not any(columns.is_padded(shape) for shape in shapes)

    def run(
        self, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """(output [T, B, width], final states [1, B, width]) from plain tensors.

        Args:
            x: [T, B, I].
            states: the initial ones; empty: those given before.
            weights: in the order of their names.
        """
        for k, use in self._uses:
            pointer = weights[k].data_ptr()
            if pointer != self._bound[k]:
                self._is_bound = False
                if use is not None:
                    self.session.bind(use, weights[k])
                self._bound[k] = pointer
        if not self._is_bound:
            self.session.copy(at_weights(self._parameters, weights), self._copies)
            self._is_bound = True
        session, output = self.session, self._like.new_empty(self._output_shape)
        table, copies, start = session.table, session.copies, output.data_ptr()
        first = 3 * len(self._parameters)
        for slot in self._output_slots:
            table[slot] = start
        for slot, offset in self._last_of_output:
            copies[first + slot] = start + offset
        for slot, state in zip(self._initial_slots, states or self.initial, strict=True):
            table[slot] = state.data_ptr()
        finals = [torch.empty_like(state) for state in self.initial]
        for k, final in enumerate(finals):
            copies[first + 3 * k] = final.data_ptr()
        session.call[AT["x"]] = x.data_ptr()
        session.run()
        return output, finals
