"""Between a layer's tensors and the memory of a CPU kernel: padding, weights by leaf, gradients by weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cellfuse.cell import Cell
from cellfuse.codegen.cpu.layout import Layout
from cellfuse.codegen.program import Place, Sum
from cellfuse.graph.masks import MASKS
from cellfuse.graph.ops import Shape
from cellfuse.runtime.case import Weights


@dataclass(frozen=True, eq=False)
class Outer:
    """Gradients of matrices that one large product gives.

    Attributes:
        left: first of the columns of the left values.
        labels: of the matrices, one for each of the columns.
        right: the right values.
        is_by_head: the matrices are block-diagonal.
    """

    left: Place
    labels: tuple[str, ...]
    right: Place
    is_by_head: bool


@dataclass(frozen=True)
class Use:
    """Where a kernel reads a weight.

    Attributes:
        name: of the weight.
        slots: entries of the kernel's table, and the first rows they point to.
        biases: entries among the driver's pairs of biases, and the first numbers.
        is_input: whether it is the input product's matrix.
    """

    name: str
    slots: tuple[tuple[int, int], ...]
    biases: tuple[tuple[int, int], ...]
    is_input: bool


_NONE: Mapping[str, Tensor] = {}
INPUT = Place("x", 0)  # stands for the layer's input on the right of weight_ih's product


class Columns:
    """Of one program in one layout.

    Attributes:
        outers: the large products after the loop that belong to matrices of the step.
        masks: where the step reads each mask, by its label, which is its name among the weights.
    """

    def __init__(self, cell: Cell, layout: Layout) -> None:
        self.cell, self.layout, self.program = cell, layout, layout.program
        self._padded = {(): False, ("H",): layout.is_padded("H")}
        self._padded["P",] = layout.sizes.projected > 0 and layout.is_padded("P")
        self.outers = _outers(self.program.sums)
        self.sources = {leaf.label: self._source(leaf.label) for leaf in self.program.step.inputs}
        self.sources |= {bias: self._source(bias) for bias, _ in self.program.moved}
        self.rows = {s.label: s.left[0] for s in self.program.sums if s.kind == "rows"}
        self.matrices = [leaf.label for leaf in self.program.step.of_role("matrix")]
        fixed = [i for i in self.program.step.inputs if i.role in ("diagonal", "bias", "parameter")]
        self.masks = {
            leaf.label: place for leaf, place in self.program.infer.places.items() if leaf.role in MASKS
        }
        self.parameters = [i.label for i in fixed if i.shape]
        self.constants = [i.label for i in fixed if not i.shape]
        self._recipes: dict[str, list[tuple[object, int, int]]] = {}
        self.moves = self._moves()

    @cached_property
    def is_direct(self) -> bool:
        """Whether the only parameter can be read where it stands."""
        return len(self.parameters) == 1 and not self._padded["H",]

    @cached_property
    def native_outers(self) -> list[Outer]:
        """The large products of the driver, that of weight_ih first; the others are block-diagonal."""
        inputs = self.program.inputs
        of_input = [Outer(Place("gradients", 0), inputs, INPUT, False)] if inputs else []
        return [*of_input, *(outer for outer in self.outers if not outer.is_by_head)]

    @cached_property
    def native(self) -> list[tuple[Outer, int, int, tuple[str, int] | None]]:
        """Those of the driver with the columns of their left values; and the weight and its first row where
        such a product is a whole run of rows of a gradient."""
        targets = self._targets()
        return [(outer, *self.range(outer), targets.get(outer)) for outer in self.native_outers]

    def _source(self, label: str) -> tuple[str, int, int]:
        """(weight, first row, rows) of a leaf; rows -1: all of it."""
        H, stem, gate = self.layout.sizes.hidden, *label.partition(".")[::2]
        if label == "W_hr":
            return "weight_hr", 0, -1
        if label.startswith("R_") and label[2:] in self.cell.recurrent_gates:
            return "weight_hh", self.cell.recurrent_gates.index(label[2:]) * H, H
        if gate == "b" and stem in self.cell.recurrent_gates:
            return "bias_hh", self.cell.recurrent_gates.index(stem) * H, H
        if gate and stem in self.cell.parameters:
            return stem, self.cell.gates.index(gate) * H, H
        return label, 0, -1

    def _moves(self) -> list[tuple[int, int, int]]:
        """(row in the input product's bias, row in bias_hh, rows) of the moved biases."""
        H = self.layout.sizes.hidden
        runs: list[tuple[int, int, int]] = []
        into = {f"{gate}.x": place * H for place, gate in enumerate(self.program.inputs)}
        for target, source in sorted((into[x], self.sources[bias][1]) for bias, x in self.program.moved):
            last = runs[-1] if runs else (-1, -1, 0)
            if runs and last[0] + last[2] == target and last[1] + last[2] == source:
                runs[-1] = (*last[:2], last[2] + H)
            else:
                runs.append((target, source, H))
        return runs

    def _targets(self) -> dict[Outer, tuple[str, int]]:
        found: dict[Outer, tuple[str, int]] = {}
        if any(self._padded.values()):
            return found
        names = {self.sources[label][0] for outer in self.outers for label in outer.labels}
        for name in sorted(names):
            recipe, first = self.recipe(name), 0
            if all(isinstance(part[0], Outer) and part[1] == 0 for part in recipe):
                sizes = [self._rows(part[0]) for part in recipe]  # type: ignore[arg-type]
                if sizes == [part[2] for part in recipe]:
                    for part in recipe:
                        found[part[0]] = (name, first)  # type: ignore[index]
                        first += part[2]
        if self.program.inputs:
            found[self.native_outers[0]] = ("weight_ih", 0)
        return found

    def _rows(self, outer: Outer) -> int:
        low, high = self.range(outer)
        return -1 if outer.is_by_head else high - low

    def range(self, outer: Outer) -> tuple[int, int]:
        """Where the left values of a large product stand in a row of the gradients."""
        offsets = self.layout.offsets["gradients"]
        return offsets[outer.left.column], offsets[outer.left.column + len(outer.labels)]

    @cached_property
    def uses(self) -> list[Use]:
        """Where the kernel reads each weight."""
        H, into = self.layout.sizes.hidden, dict(self.program.moved)
        names = dict.fromkeys([*(source[0] for source in self.sources.values()), "weight_ih", "bias_ih"])
        made = []
        for name in names:
            slots = self.layout.slots
            matrices = [(slots[m], self.sources[m][1]) for m in self.matrices if self.sources[m][0] == name]
            if self.is_direct:
                matrices += [
                    (slots["parameters"], self.sources[p][1])
                    for p in self.parameters
                    if self.sources[p][0] == name
                ]
            pairs = []
            for k, gate in enumerate(self.program.inputs):
                if name == "bias_ih":
                    pairs.append((2 * k, k * H))
                pairs += [
                    (2 * k + 1, self.sources[bias][1])
                    for bias, x in into.items()
                    if x == f"{gate}.x" and self.sources[bias][0] == name
                ]
            is_input = name == "weight_ih" and bool(self.program.inputs)
            if matrices or pairs or is_input:
                made.append(Use(name, tuple(matrices), tuple(pairs), is_input))
        return made

    def is_padded(self, shape: Shape) -> bool:
        """Whether the kernel's memory has more numbers than the shape has units."""
        return self._padded[shape]

    def leaf(self, weights: Weights, label: str) -> Tensor:
        """The part of a weight that a leaf of the step stands for."""
        name, first, count = self.sources[label]
        return weights[name] if count < 0 else weights[name].narrow(0, first, count)

    def input_bias(self, weights: Weights) -> Tensor | None:
        """The bias of the input product, with the recurrent biases that were moved to it."""
        bias = weights.get("bias_ih")
        if not self.moves:
            return bias
        recurrent = weights["bias_hh"]
        rows = len(self.program.inputs) * self.layout.sizes.hidden
        if self.moves == [(0, 0, rows)] and len(recurrent) == rows:
            return recurrent if bias is None else bias + recurrent
        bias = recurrent.new_zeros(rows) if bias is None else bias.clone()
        for target, source, count in self.moves:
            bias.narrow(0, target, count).add_(recurrent.narrow(0, source, count))
        return bias

    # padding

    def spread(self, value: Tensor, shape: Shape, dim: int = -1) -> Tensor:
        """Zeros put where the kernel's memory has no units; the value itself if there are none.

        Several columns may stand along `dim`.
        """
        if not self._padded[shape]:
            return value
        dim %= value.dim()
        units, padded = self._lengths(shape)
        parts = value.unflatten(dim, (-1, units))
        new = parts.new_zeros((*parts.shape[: dim + 1], padded, *parts.shape[dim + 2 :]))
        new.narrow(dim + 1, 0, units).copy_(parts)
        return new.flatten(dim, dim + 1)

    def gather(self, value: Tensor, shape: Shape, dim: int = -1) -> Tensor:
        """The units alone, undoing `spread`; a view if there is no padding."""
        if not self._padded[shape]:
            return value
        dim %= value.dim()
        units, padded = self._lengths(shape)
        return value.unflatten(dim, (-1, padded)).narrow(dim + 1, 0, units).flatten(dim, dim + 1)

    def _lengths(self, shape: Shape) -> tuple[int, int]:
        return self.layout.units(shape[0]), self.layout.vectors(shape[0]) * self.layout.lanes

    def lengths(self, shape: Shape) -> tuple[int, int, int]:
        """Groups of units that are padded each by itself, units of one, and those with the padding."""
        return (self.layout.groups(shape[0]), *self._lengths(shape)) if shape else (1, 1, 1)

    def units(self, shape: Shape) -> int:
        """Numbers of a value without the padding."""
        groups, units, _ = self.lengths(shape)
        return groups * units

    def column(self, buffer: Tensor, place: Place, count: int = 1) -> Tensor:
        """Some neighbouring columns of a buffer [..., row]."""
        offsets = self.layout.offsets[place.buffer]
        return buffer[..., offsets[place.column] : offsets[place.column + count]]

    def shape(self, place: Place) -> Shape:
        """Of the values of a place."""
        name = "states" if self.layout.is_state(place) else place.buffer
        return self.program.buffers[name].columns[place.column]

    # gradients

    def gradients(
        self, weights: Weights, sums: Mapping[object, Tensor], whole: Mapping[str, Tensor] = _NONE
    ) -> dict[str, Tensor]:
        """The gradient of each weight, from the large products and the sums of rows by buffer; of no mask.

        Those in `whole` are ready. Each has memory of its own: a user may change one in place.
        """
        found = {}
        for name, weight in weights.items():
            if name in self.masks:
                continue
            if name in whole:
                found[name] = whole[name]
                continue
            parts = [self._part(*source, sums) for source in self.recipe(name)]
            if not parts:
                found[name] = torch.zeros_like(weight)
            elif len(parts) > 1:
                found[name] = torch.cat(parts).view(weight.shape)
            else:
                found[name] = parts[0].reshape(weight.shape).clone() if weight.dim() < 2 else parts[0]
        return found

    def recipe(self, name: str) -> list[tuple[object, int, int]]:
        """(which sum, first row or column, how many) of the parts of a weight's gradient, in order."""
        if name not in self._recipes:
            self._recipes[name] = self._recipe(name)
        return self._recipes[name]

    def _recipe(self, name: str) -> list[tuple[object, int, int]]:
        H, count = self.layout.sizes.hidden, len(self.program.inputs)
        if name == "weight_ih":
            return [("weight_ih", 0, count * H)]
        if name == "bias_ih":
            return [("gradients", 0, count)]
        parts: list[tuple[object, int, int]] = []
        labels = sorted((s[1], label) for label, s in self.sources.items() if s[0] == name)
        for _, label in labels:
            sources = [(o, o.labels.index(label)) for o in self.outers if label in o.labels]
            if len(sources) > 1:  # a matrix that multiplies two values
                parts.append((tuple(sources), 0, 0))
            elif sources:
                outer, k = sources[0]
                rows = self.layout.units(self.shape(outer.left)[0]) * self.layout.groups(
                    self.shape(outer.left)[0]
                )
                parts.append((outer, k * rows, rows))
            elif label in self.rows:
                parts.append((self.rows[label].buffer, self.rows[label].column, 1))
        joined: list[tuple[object, int, int]] = []
        for source, first, size in parts:
            last = joined[-1] if joined else None
            if last and last[0] == source and last[1] + last[2] == first and size:
                joined[-1] = (source, last[1], last[2] + size)
            else:
                joined.append((source, first, size))
        return joined

    def _part(self, source: object, first: int, count: int, sums: Mapping[object, Tensor]) -> Tensor:
        if isinstance(source, str) and source != "weight_ih":
            place = Place(source, first)
            return self.gather(self.column(sums[source], place, count), self.shape(place))
        if isinstance(source, tuple):
            return sum(
                sums[o].narrow(0, k * (len(sums[o]) // len(o.labels)), len(sums[o]) // len(o.labels))
                for o, k in source
            )  # type: ignore[return-value]
        total = sums[source]
        return total if count == len(total) else total.narrow(0, first, count)


def _outers(sums: tuple[Sum, ...]) -> tuple[Outer, ...]:
    """Products of neighbouring left values with the same right ones, made together."""
    pairs = [
        (right, left, each.label, each.kind == "blocks")
        for each in sums
        if each.kind != "rows"
        for left, right in zip(each.left, each.right, strict=True)
    ]
    pairs.sort(key=lambda pair: (pair[0].buffer, pair[0].column, pair[1].column))
    made: list[Outer] = []
    for right, left, label, is_by_head in pairs:
        last = made[-1] if made else None
        if (
            last
            and last.right == right
            and last.left.column + len(last.labels) == left.column
            and not is_by_head
        ):
            made[-1] = Outer(last.left, (*last.labels, label), right, False)
        else:
            made.append(Outer(left, (label,), right, is_by_head))
    return tuple(made)
