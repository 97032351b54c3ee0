"""Where the gradient of each weight comes from: rows of the driver's products, or runs of its sums.

For `trained`, whose copies after the loop they become. Knows sizes and no tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cellfuse.codegen.program import Place
from cellfuse.runtime.columns import INPUT, Outer
from cellfuse.runtime.fused import Fused


@dataclass(frozen=True)
class Placed:
    """Rows of a product that are rows of a weight's gradient.

    Attributes:
        to: bytes behind the gradient's start.
        source: bytes behind the product's start.
        line: bytes of a row; step: between rows of the product.
    """

    name: str
    to: int
    source: int
    line: int
    rows: int
    step: int


@dataclass(frozen=True)
class Out:
    """One of the driver's products.

    Attributes:
        right: its right values.
        pieces: where its rows go.
        numbers: of memory it needs first; 0 if it is written where it goes.
    """

    right: Place
    pieces: tuple[Placed, ...]
    numbers: int


def whole_vectors(fused: Fused, input_size: int) -> int:
    """Numbers of a row of the input in whole vectors."""
    lanes = fused.layout.lanes
    return -(-input_size // lanes) * lanes


def products_of(fused: Fused, names: Sequence[str], input_size: int) -> list[Out]:
    """Where each of the driver's products goes."""
    columns, made = fused.columns, []
    pieces = [piece for name in names for piece in rows_of(fused, name) or ()]
    for outer, low, high, _ in columns.native:
        if outer.right is INPUT:
            width, units = whole_vectors(fused, input_size), input_size
        else:
            shape = columns.shape(outer.right)
            width, units = fused.layout.width(shape), columns.units(shape)
        line, step = units * fused.size, width * fused.size
        mine = [
            Placed(name, to * line, source * step, line, rows, step)
            for each, name, to, source, rows in pieces
            if each is outer
        ]
        is_direct = units == width and len(mine) == 1 and mine[0].rows == high - low
        made.append(Out(outer.right, tuple(mine), 0 if is_direct else (high - low) * width))
    return made


def rows_of(fused: Fused, name: str) -> list[tuple[Outer, str, int, int, int]] | None:
    """(product, weight, first row of the gradient, of the product, rows) of a weight's gradient that is made
    of products alone; None of others."""
    columns, found, to = fused.columns, [], 0
    for source, first, rows in columns.recipe(name):
        outer = columns.native_outers[0] if source == "weight_ih" else source
        if not isinstance(outer, Outer) or outer.is_by_head:
            return None
        _, units, padded = columns.lengths(columns.shape(outer.left))
        if units == padded:
            found.append((outer, name, to, first, rows))
        else:
            found += [
                (outer, name, to + k, (first + k) // units * padded, units) for k in range(0, rows, units)
            ]
        to += rows
    return found


def sums_of(fused: Fused, name: str) -> list[tuple[int, int, int, int]] | None:
    """(first byte of the sums, bytes of a column, columns, step between columns) of the sums that make a
    weight's gradient; None if it is made otherwise."""
    columns, size, parts = fused.columns, fused.size, []
    for source, first, count in columns.recipe(name):
        if source != "gradients":
            return None
        shape = columns.shape(Place("gradients", first))
        at, width = fused.layout.offset("gradients", first), fused.layout.width(shape)
        parts.append((at * size, columns.units(shape) * size, count, width * size))
    return parts or None
