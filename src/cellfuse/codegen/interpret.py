"""Run a Program in float64 NumPy, stage by stage. Slow: the definition that kernels are tested against.

All buffers start as NaN, so that a value that is read before it is written shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cellfuse.codegen.program import Loop, Place, Program, Sum, Term, arguments
from cellfuse.codegen.schedule import REDUCTIONS
from cellfuse.graph.expr import Expr
from cellfuse.graph.masks import MASKS
from cellfuse.graph.ops import OPS

Array = np.ndarray


class Run:
    """One run of a program over a sequence.

    Args:
        products: the input product of each of `program.inputs`, [T, B, H], moved biases added.
        states: initial states, [B, H] or [B, P].
        fixed: matrices, biases and parameters by label; masks, [T, B, H] or, if they last, [B, H].
        sizes: H and, if there is a projection, P.
    """

    def __init__(
        self,
        program: Program,
        products: Sequence[Any],
        states: Sequence[Any],
        fixed: Mapping[str, Any],
        sizes: Mapping[str, int],
        steps: int,
    ) -> None:
        self.program, self.sizes, self.steps = program, sizes, steps
        self.batch = len(states[0])
        self.fixed = {label: np.asarray(value, np.float64) for label, value in fixed.items()}
        rows: dict[str, tuple[int, ...]] = {"time": (steps, self.batch), "slab": (steps + 1, self.batch)}
        rows |= {"batch": (self.batch,), "once": ()}
        self.memory = {
            name: [
                np.full((*rows[buffer.rows], *(sizes[axis] for axis in shape or ())), np.nan)[..., None]
                if not shape
                else np.full((*rows[buffer.rows], sizes[shape[0]]), np.nan)
                for shape in buffer.columns
            ]
            for name, buffer in program.buffers.items()
        }
        for column, value in enumerate(products):
            self.memory["products"][column][:] = value
        for column, state in enumerate(states):
            self.memory["states"][column][0] = state
        for expr, place in program.infer.places.items():
            if place.buffer in ("parameters", "constants") or expr.role in MASKS:
                self.memory[place.buffer][place.column][...] = self.fixed[expr.label]

    def forward(self, *, keep: bool = True) -> tuple[Array, tuple[Array, ...]]:
        """(output [T, B, H], final states)."""
        for t in range(self.steps):
            self._step(self.program.forward if keep else self.program.infer, t)
        column, states = self.program.output.column, self.memory["states"]
        is_state = self.program.output.buffer == "after"
        output = states[column][1:] if is_state else self.memory["output"][column]
        return output, tuple(state[-1] for state in states)

    def backward(self, output_gradient: Any, state_gradients: Sequence[Any]) -> dict[str, Array]:
        """The gradients by label: input products [T, B, H], initial states, everything that is fixed."""
        self.memory["output_gradient"][0][:] = output_gradient
        for column, value in enumerate(state_gradients):
            self.memory["carry"][column][:] = value
        for t in reversed(range(self.steps)):
            self._step(self.program.backward, t)
        found = {f"{g}.x": self.memory["gradients"][k] for k, g in enumerate(self.program.inputs)}
        for state, value in zip(self.program.step.of_role("state"), self.memory["carry"], strict=True):
            found[state.label] = value
        return found | {sum.label: self._sum(sum) for sum in self.program.sums}

    def _view(self, place: Place, t: int) -> Array:
        """The values of a place at one time step, to read or to write."""
        if place.buffer in ("before", "after"):
            return self.memory["states"][place.column][t + (place.buffer == "after")]
        value = self.memory[place.buffer][place.column]
        return value[t] if self.program.buffers[place.buffer].rows == "time" else value

    def _step(self, loop: Loop, t: int) -> None:
        made: dict[Expr, Array] = {}

        def read(expr: Expr) -> Any:
            if expr.op == "constant":
                return np.float64(expr.value)
            if expr.op == "size":
                return np.float64(self.sizes[expr.label])
            if expr in made:
                return made[expr]
            value = self._view(loop.places[expr], t).copy()
            return value != 0 if expr.is_truth else value

        def compute(expr: Expr) -> None:
            values = [read(arg) for arg in arguments(expr)]
            if expr.op == "expand":
                values.append(np.zeros(self.sizes[expr.shape[0]]))
            with np.errstate(all="ignore"):
                made[expr] = OPS[expr.op].meaning(*values)

        gathered: dict[Expr, Array] = {}
        for stage in loop.stages:
            made = {}
            for expr, place in stage.scans:
                self._view(place, t)[...] = OPS[expr.op].meaning(self._view(loop.places[expr.args[0]], t))
            for expr in stage.numbers:
                if expr.op in REDUCTIONS:
                    made[expr] = gathered[expr]
                else:
                    compute(expr)
            for expr, place in stage.stores:
                self._view(place, t)[...] = read(expr)
            for each in stage.maps:
                made = {}
                for product in each.products:
                    for result, terms in zip(product.results, product.terms, strict=True):
                        made[result] = sum(self._product(term, read(term.operand)) for term in terms)  # type: ignore[assignment]
                for expr in each.nodes:
                    compute(expr)
                for expr in each.reductions:
                    gathered[expr] = OPS[expr.op].meaning(read(expr.args[0]))
                values = [(place, read(expr)) for expr, place in each.stores]
                for place, value in values:
                    self._view(place, t)[...] = value

    def _product(self, term: Term, value: Array) -> Array:
        matrix = self.fixed[term.matrix.label]
        name = ("blocks_product" if matrix.ndim == 3 else "product") + "_t" * term.is_transposed
        return OPS[name].meaning(matrix, value)

    def _sum(self, sum: Sum) -> Array:
        def column(place: Place) -> Array:
            if place.buffer == "before":
                return self.memory["states"][place.column][:-1]
            return self.memory[place.buffer][place.column]

        shape = self.fixed[sum.label].shape
        if sum.kind == "rows":
            return column(sum.left[0]).sum((0, 1)).reshape(shape)
        total = np.zeros(shape)
        for left, right in zip(sum.left, sum.right, strict=True):
            if sum.kind == "outer":
                total += np.einsum("tbi,tbj->ij", column(left), column(right))
            else:
                heads, width = shape[0], shape[1]
                a, b = (column(p).reshape(self.steps, self.batch, heads, width) for p in (left, right))
                total += np.einsum("tbni,tbnj->nij", a, b)
        return total
