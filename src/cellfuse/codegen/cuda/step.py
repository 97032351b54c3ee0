"""One time step of a cell as device functions, for kernels that run the whole loop over time.

The backward step is split: `cell_factors` computes everything that no incoming gradient is needed for,
`cell_gradients` is what is left, linear in the gradients and a few multiplications deep. Only the
second is on the way from one time step to the next. `gradients` makes both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cellfuse.codegen.cuda.gradients import Backward
from cellfuse.codegen.cuda.writer import ROWS, Writer
from cellfuse.codegen.program import Loop, Place, Program
from cellfuse.graph.expr import Expr
from cellfuse.graph.masks import MASKS


@dataclass(frozen=True)
class Step:
    """A cell's step, ready for a kernel.

    Attributes:
        program: what it computes.
        state: number of the state that the matrices multiply; -1 without any.
        matrices: their labels; r[g] is the product with the g-th.
        is_blocks: whether the matrices are block-diagonal, one block a head.
        loads: what `cell_factors` reads in memory, in the order of its argument v.
        written: columns of "gradients" that `cell_gradients` gives per time step.
        accumulated: the gradients that are summed over time in registers: columns of "gradients" or
            of "gradient_numbers", the latter per unit, still to be summed over units.
        recurrent: for each matrix the position in `written` of the gradient of its product.
        factors: how many values `cell_factors` gives.
        forward, backward: the text of the functions.
    """

    program: Program
    state: int
    matrices: tuple[str, ...]
    is_blocks: bool
    loads: tuple[Place, ...]
    written: tuple[int, ...]
    accumulated: tuple[Place, ...]
    recurrent: tuple[int, ...]
    factors: int
    forward: str
    backward: str


def why_no_step(program: Program) -> str:
    """Why a kernel of the whole loop cannot run the program; empty if it can."""
    loops = (program.infer, program.forward, program.backward)
    name = program.step.name
    if any(leaf.role in MASKS for leaf in program.step.inputs):
        return (
            f"{name} has masks of zoneout or recurrent dropout, which kernels of the whole loop do not read"
        )
    for buffer in program.buffers.values():
        if ("P",) in buffer.columns:
            return f"{name} has a projection, a second product in each step"
    if any(stage.scans for loop in loops for stage in loop.stages):
        return f"{name} has a cumulative sum over the units"
    if any(place.buffer == "kept_numbers" for _, place in program.kept):
        return f"{name} has sums over the units in each step, such as layer normalisation"
    for loop in (program.infer, program.forward):
        if len(loop.stages) > 1:
            return f"{name} has {len(loop.stages)} stages in each step: one needs all units of the one before"
    products = [p for stage in program.forward.stages for each in stage.maps for p in each.products]
    if len(products) > 1 or any(len(product.operands) > 1 for product in products):
        return f"{name} multiplies several values by matrices in each step"
    if products and products[0].operands[0].role != "state":
        return f"{name} multiplies a value that is no state by matrices"
    repeated = [p for stage in program.backward.stages for each in stage.maps for p in each.products]
    if any(not term.is_transposed for product in repeated for terms in product.terms for term in terms):
        return f"the backward loop of {name} needs the recurrent product again (recompute=True)"
    # Two stages: the gradients, then the transposed product. Numbers come in a stage of their own.
    wide = [stage for stage in program.backward.stages if stage.maps]
    if len(wide) > 1 + bool(products):
        return f"the gradient of {name} has {len(wide)} stages in each step"
    if any(term.is_transposed for product in products for terms in product.terms for term in terms):
        return f"{name} multiplies by a transposed matrix"
    if any(sum.right and any(place.buffer != "before" for place in sum.right) for sum in program.sums):
        return f"{name} needs values of the step for the gradient of its matrices"
    return ""


def step_functions(program: Program, hidden: int) -> Step:
    """The device functions of a program.

    Args:
        hidden: number of units, for cells that read it.

    Raises:
        ValueError: see `why_no_step`.
    """
    why = why_no_step(program)
    if why:
        raise ValueError(why)
    products = [p for stage in program.forward.stages for each in stage.maps for p in each.products]
    made: dict[Expr, str] = {}
    matrices: tuple[str, ...] = ()
    state, is_blocks = -1, False
    if products:
        (product,) = products
        state = program.step.of_role("state").index(product.operands[0])
        by_matrix = {
            terms[0].matrix: result for result, terms in zip(product.results, product.terms, strict=True)
        }
        ordered = [matrix for matrix in program.step.of_role("matrix") if matrix in by_matrix]
        made = {by_matrix[matrix]: f"r[{g}]" for g, matrix in enumerate(ordered)}
        matrices = tuple(matrix.label for matrix in ordered)
        is_blocks = len(ordered[0].shape) == 3
    texts = [
        _forward(name, loop, program, made, hidden)
        for name, loop in (("infer", program.infer), ("keep", program.forward))
    ]
    backward = Backward(program, state, matrices, hidden)
    return Step(
        program,
        state,
        matrices,
        is_blocks,
        backward.loads,
        backward.written,
        backward.accumulated,
        backward.recurrent,
        len(backward.factors),
        "\n".join(texts),
        backward.text,
    )


def _forward(name: str, loop: Loop, program: Program, made: Mapping[Expr, str], hidden: int) -> str:
    """The function of the forward step; `keep` also gives what the backward step reads."""
    names = dict(made)
    for expr, place in loop.places.items():
        if place.buffer in ROWS:
            names.setdefault(expr, f"{ROWS[place.buffer]}[{place.column}]")
    writer = Writer(names, hidden)
    output, *states = program.step.results
    ends = [f"  next[{k}] = {writer.value(expr)};" for k, expr in enumerate(states)]
    ends.append(f"  y[0] = {writer.value(output)};")
    if name == "keep":
        ends += [f"  kept[{k}] = {_number(writer, expr)};" for k, (expr, _) in enumerate(program.kept)]
    head = (
        f"DEV void cell_{name}(const float* s, const float* x, const float* r, const float* p, "
        "const float* c, float* next, float* y, float* kept) {"
    )
    return "\n".join((head, *writer.lines, *ends, "}"))


def _number(writer: Writer, expr: Expr) -> str:
    text = writer.value(expr)
    return f"({text} ? 1.0f : 0.0f)" if expr.is_truth else text
