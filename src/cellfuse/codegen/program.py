"""Program: the loop over time, with what is read and written where. Says nothing about sizes or speed.

A backend turns it into a kernel; `interpret` runs it slowly and is its definition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cellfuse.graph.expr import Expr
from cellfuse.graph.graph import Graph
from cellfuse.graph.ops import Shape


@dataclass(frozen=True)
class Buffer:
    """A table of values in memory, one column per value.

    Attributes:
        rows: "time" (a row per time step and sequence), "slab" (as time, but a state: the step before
            is read), "batch" (a row per sequence, used again at each step) or "once" (one row).
        columns: the shape of each column: ("H",), ("P",) or () for a number.
    """

    rows: str
    columns: tuple[Shape, ...]


@dataclass(frozen=True)
class Place:
    """Where a value stands: a column of a buffer, of this time step.

    The buffer "before" is the states as the step found them; "after" as it leaves them.
    """

    buffer: str
    column: int

    def __str__(self) -> str:
        return f"{self.buffer}[{self.column}]"


@dataclass(frozen=True)
class Term:
    """One product of a sum: a matrix, or its transpose, times a value."""

    matrix: Expr
    is_transposed: bool
    operand: Expr


@dataclass(frozen=True)
class Product:
    """Several sums of products of the same operands, made together.

    Attributes:
        results: one node per sum.
        terms: for each result its terms; the operands are the same ones, in the same order.
    """

    results: tuple[Expr, ...]
    terms: tuple[tuple[Term, ...], ...]

    @property
    def operands(self) -> tuple[Expr, ...]:
        """What the matrices multiply."""
        return tuple(term.operand for term in self.terms[0])


def arguments(expr: Expr) -> tuple[Expr, ...]:
    """The values a node is computed from; the second argument of expand gives only the shape."""
    return expr.args[:1] if expr.op == "expand" else expr.args


Stores = tuple[tuple[Expr, Place], ...]


@dataclass(frozen=True)
class Map:
    """Work on every unit of one axis by itself.

    Attributes:
        axis: "H" or "P".
        products: made first; their operands are whole by then.
        nodes: element-wise operations, in order.
        reductions: sums and maxima over the units, finished when the map has ended.
        stores: what is written.
    """

    axis: str
    products: tuple[Product, ...]
    nodes: tuple[Expr, ...]
    reductions: tuple[Expr, ...]
    stores: Stores


@dataclass(frozen=True)
class Stage:
    """What can be done once the stages before have ended.

    Attributes:
        scans: cumulative sums, one unit after the other, each with its place.
        numbers: operations on one number per sequence, in order, before the maps.
        stores: numbers that are written.
        maps: one for each axis.
    """

    scans: Stores
    numbers: tuple[Expr, ...]
    stores: Stores
    maps: tuple[Map, ...]


@dataclass(frozen=True)
class Loop:
    """The body of a loop over time.

    Attributes:
        stages: in order.
        places: where each value that a stage does not compute itself is read.
    """

    stages: tuple[Stage, ...]
    places: Mapping[Expr, Place]


@dataclass(frozen=True)
class Sum:
    """A gradient of something that is the same at all time steps, made after the loop.

    Attributes:
        label: the leaf it is the gradient of.
        kind: "rows" (a value summed over time and sequences), or "outer" or "blocks" (sums of outer
            products of two values, which are one large matrix product).
        left: places of the values, in "gradients"; for products the left ones.
        right: places of the right ones, in "gradients" or "before".
    """

    label: str
    kind: str
    left: tuple[Place, ...]
    right: tuple[Place, ...] = ()


@dataclass(frozen=True)
class Program:
    """One direction of one layer over time.

    Attributes:
        step: the step it computes, after recurrent biases were moved out of the loop.
        moved: labels of recurrent biases and of the input products they are added to before the loop.
        inputs: gates with an input product, in the order of the columns of "products".
        infer: the loop where no gradient is wanted.
        forward: the loop that also writes what the backward loop reads.
        backward: the loop from the last time step to the first.
        kept: the values written for the backward loop besides states and output.
        sums: gradients made after the backward loop.
        buffers: every buffer by name.
        output: place of the output: a column of "after", or of "output".
    """

    step: Graph
    moved: tuple[tuple[str, str], ...]
    inputs: tuple[str, ...]
    infer: Loop
    forward: Loop
    backward: Loop
    kept: tuple[tuple[Expr, Place], ...]
    sums: tuple[Sum, ...]
    buffers: Mapping[str, Buffer]
    output: Place


def show(program: Program) -> str:
    """The printed form, stable: buffers, then the three loops, then what is summed after them."""
    lines = [f"program {program.step.name}"]
    if program.moved:
        lines.append(f"  before: {', '.join(f'{x} + {bias}' for bias, x in program.moved)}")
    for name, buffer in program.buffers.items():
        columns = " ".join("".join(shape) or "number" for shape in buffer.columns)
        lines.append(f"  buffer {name:<12} {buffer.rows:<6} {columns}")
    for name in ("infer", "forward", "backward"):
        lines.append(f"{name}:")
        lines.extend(_show_loop(getattr(program, name)))
    lines.append("after:")
    for sum in program.sums:
        left, right = " ".join(map(str, sum.left)), " ".join(map(str, sum.right))
        lines.append(f"  d({sum.label}) = {sum.kind} {left}{' x ' + right if right else ''}")
    return "\n".join(lines)


def _show_loop(loop: Loop) -> Iterable[str]:
    text = {expr: str(place) for expr, place in loop.places.items()}
    made: dict[Expr, str] = {}

    def name(expr: Expr) -> str:
        if expr.op == "constant":
            return f"{expr.value:.9g}"
        if expr.op == "size":
            return f"size({expr.label})"
        return made.get(expr) or text[expr]

    def define(expr: Expr, call: str) -> str:
        made[expr] = f"%{len(made)}"
        return f"    {made[expr]} = {call}"

    for number, stage in enumerate(loop.stages):
        yield f"  stage {number}"
        for expr, place in stage.scans:
            yield define(expr, f"{expr.op} {name(expr.args[0])} -> {place}")
        for expr in stage.numbers:
            yield define(expr, f"{expr.op} {' '.join(map(name, arguments(expr)))}")
        for expr, place in stage.stores:
            yield f"    {place} = {name(expr)}"
        for each in stage.maps:
            yield f"   each {each.axis}"
            for product in each.products:
                for result, terms in zip(product.results, product.terms, strict=True):
                    sides = (f"{t.matrix.label}{chr(39) * t.is_transposed} {name(t.operand)}" for t in terms)
                    yield define(result, " + ".join(sides))
            for expr in each.nodes:
                yield define(expr, f"{expr.op} {' '.join(map(name, arguments(expr)))}")
            for expr in each.reductions:
                yield f"    gather {expr.op} {name(expr.args[0])}"
            for expr, place in each.stores:
                yield f"    {place} = {name(expr)}"
