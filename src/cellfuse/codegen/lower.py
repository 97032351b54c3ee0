"""Graph of one time step -> Program over time."""

from __future__ import annotations

from collections.abc import Mapping

from cellfuse.codegen.keep import kept
from cellfuse.codegen.program import Buffer, Place, Program, Stores, Sum
from cellfuse.codegen.rewrite import gather_products, move_biases
from cellfuse.codegen.schedule import Schedule
from cellfuse.errors import CellError
from cellfuse.graph.backward import backward
from cellfuse.graph.expr import Expr, leaf, node, order
from cellfuse.graph.graph import Graph
from cellfuse.graph.masks import MASKS
from cellfuse.graph.ops import Shape


def lower(step: Graph, *, recompute: bool = False) -> Program:
    """The program that runs a step over time, forward and backward.

    Args:
        recompute: keep only states; the backward loop makes everything else again. Slower, less memory.

    Raises:
        CellError: the gradient of a matrix is not a sum of outer products; no cell made by `cell` has one.
    """
    step, moved = move_biases(step)
    results, sums = gather_products(step.results)
    outputs = tuple(zip((name for name, _ in step.outputs), results, strict=True))
    step = Graph(step.name, step.inputs, outputs)
    made = _Lowering(step, sums, recompute)
    return made.program(moved)


class _Lowering:
    def __init__(self, step: Graph, sums: dict, recompute: bool) -> None:
        self.step, self.sums, self.recompute = step, sums, recompute
        self.buffers: dict[str, Buffer] = {}
        self.products = step.of_role("input product")
        self.states = step.of_role("state")
        output, *self.new_states = step.results
        is_state = output in self.new_states
        self.output = Place("after", self.new_states.index(output)) if is_state else Place("output", 0)
        self.ready = self._leaf_places()

    def _leaf_places(self) -> dict[Expr, Place]:
        ready = {x: Place("products", column) for column, x in enumerate(self.products)}
        ready |= {state: Place("before", column) for column, state in enumerate(self.states)}
        self.buffers["products"] = Buffer("time", tuple(x.shape for x in self.products))
        self.buffers["states"] = Buffer("slab", tuple(state.shape for state in self.states))
        fixed = [i for i in self.step.inputs if i.role in ("diagonal", "bias", "parameter")]
        for name, wanted in (("parameters", True), ("constants", False)):
            columns = [expr for expr in fixed if bool(expr.shape) == wanted]
            ready |= {expr: Place(name, column) for column, expr in enumerate(columns)}
            self.buffers[name] = Buffer("once", tuple(expr.shape for expr in columns))
        if self.output.buffer == "output":
            self.buffers["output"] = Buffer("time", (self.step.results[0].shape,))
        # A buffer each, so that a mask may be read where it was drawn.
        for k, mask in enumerate(i for i in self.step.inputs if i.role in MASKS):
            ready[mask] = Place(f"mask_{k}", 0)
            self.buffers[f"mask_{k}"] = Buffer("time" if mask.role == "mask" else "batch", (mask.shape,))
        return ready

    def _forward_stores(self) -> list[tuple[Expr, Place]]:
        stores = [(new, Place("after", column)) for column, new in enumerate(self.new_states)]
        if self.output.buffer == "output":
            stores.append((self.step.results[0], self.output))
        return stores

    def _loop(self, prefix: str, schedule: Schedule, stores: Stores):  # type: ignore[no-untyped-def]
        loop, temporary, numbers = schedule.loop(stores, prefix)
        self.buffers[f"{prefix}_temp"] = Buffer("batch", tuple(temporary))
        self.buffers[f"{prefix}_numbers"] = Buffer("batch", ((),) * numbers)
        return loop

    def program(self, moved: tuple[tuple[str, str], ...]) -> Program:
        """Everything together."""
        stores = self._forward_stores()
        infer = self._loop("infer", Schedule(self.step.results, self.ready, self.sums), tuple(stores))
        gradients = _Gradients(self.step, dict(moved))
        saved = self._kept(gradients.results)
        forward = Schedule((*self.step.results, *(e for e in saved if not e.is_leaf)), self.ready, self.sums)
        places = self._kept_places(saved, forward)
        forward_loop = self._loop("forward", forward, (*stores, *places))
        ready = self._backward_ready(places, saved)
        backward_stores = self._backward_stores(gradients)
        schedule = Schedule([expr for expr, _ in backward_stores], ready, gradients.sums | self.sums)
        backward_loop = self._loop("backward", schedule, backward_stores)
        return Program(
            step=self.step,
            moved=moved,
            inputs=tuple(x.label.removesuffix(".x") for x in self.products),
            infer=infer,
            forward=forward_loop,
            backward=backward_loop,
            kept=places,
            sums=gradients.after(),
            buffers=self.buffers,
            output=self.output,
        )

    def _kept(self, backward_results: tuple[Expr, ...]) -> tuple[Expr, ...]:
        """What the backward loop finds in memory besides states, parameters and output."""
        free = set(self.step.inputs) - set(self.products) | set(self.step.results)
        forward = [e for e in order(self.step.results) if e not in free]
        if self.recompute:
            return tuple(x for x in self.products if x in set(order(backward_results)))
        return kept(forward, backward_results, free)

    def _kept_places(self, saved: tuple[Expr, ...], forward: Schedule) -> Stores:
        """A column for each kept value: that of an input product no longer needed, or a new one."""
        free = {x: forward.free_from(x) for x in self.products if x not in saved}
        places: list[tuple[Expr, Place]] = []
        shapes: list[Shape] = []
        numbers = 0
        for expr in saved:
            if expr in self.products:
                continue
            if not expr.shape:
                places.append((expr, Place("kept_numbers", numbers)))
                numbers += 1
                continue
            ends = forward.at[expr]
            over = next((x for x, stage in free.items() if stage <= ends and x.shape == expr.shape), None)
            if over is not None:
                del free[over]
                places.append((expr, self.ready[over]))
            else:
                places.append((expr, Place("kept", len(shapes))))
                shapes.append(expr.shape)
        self.buffers["kept"] = Buffer("time", tuple(shapes))
        self.buffers["kept_numbers"] = Buffer("time", ((),) * numbers)
        return tuple(places)

    def _backward_ready(self, places: Stores, saved: tuple[Expr, ...]) -> dict[Expr, Place]:
        overwritten = {place for _, place in places}
        ready = {e: p for e, p in self.ready.items() if p not in overwritten and (e.role != "input product")}
        ready |= {x: self.ready[x] for x in self.products if x in saved}
        ready |= dict(places)
        for column, new in enumerate(self.new_states):
            ready.setdefault(new, Place("after", column))
        if self.output.buffer == "output":
            ready.setdefault(self.step.results[0], self.output)
        for column, state in enumerate(self.states):
            ready[leaf(f"d(new {state.label})", state.shape, "gradient")] = Place("carry", column)
        output = self.step.results[0]
        ready[leaf("d(output)", output.shape, "gradient")] = Place("output_gradient", 0)
        self.buffers["output_gradient"] = Buffer("time", (output.shape,))
        self.buffers["carry"] = Buffer("batch", tuple(state.shape for state in self.states))
        return ready

    def _backward_stores(self, gradients: _Gradients) -> Stores:
        numbers = [e for e in gradients.summed if not e.shape]
        wide = [e for e in gradients.summed if e.shape]
        stores = [(e, Place("gradients", c)) for c, e in enumerate(wide)]
        stores += [(e, Place("gradient_numbers", c)) for c, e in enumerate(numbers)]
        self.buffers["gradients"] = Buffer("time", tuple(e.shape for e in wide))
        self.buffers["gradient_numbers"] = Buffer("time", ((),) * len(numbers))
        gradients.place(stores)
        carried = zip(gradients.states, (Place("carry", c) for c in range(len(self.states))), strict=True)
        return (*stores, *carried)


class _Gradients:
    """The backward graph of a step, taken apart: what the loop computes, what is left until after it."""

    def __init__(self, step: Graph, moved: Mapping[str, str]) -> None:
        self.step, self.moved = step, moved
        graph = backward(step)
        found = {i: expr for i, (_, expr) in zip(step.inputs, graph.outputs, strict=True)}
        self.outer: dict[str, list[tuple[str, Expr, Expr]]] = {}
        self.rows: dict[str, int] = {}
        wanted: list[Expr] = []

        def want(expr: Expr) -> int:
            wanted.append(expr)
            return len(wanted) - 1

        for x in step.of_role("input product"):
            self.rows[x.label] = want(_expanded(found[x], x))
        states = [want(_expanded(found[s], s)) for s in step.of_role("state")]
        pairs: dict[str, list[tuple[str, int, int]]] = {}
        for i in step.inputs:
            if i.role == "matrix":
                pairs[i.label] = [
                    ("blocks" if e.op == "blocks_outer" else "outer", want(e.args[0]), want(e.args[1]))
                    for e in _outer_products(found[i])
                ]
            elif i.role not in ("input product", "state", *MASKS):
                self.rows[i.label] = want(_expanded(found[i], i) if i.shape else found[i])
        self.results, self.sums = gather_products(tuple(wanted), order(step.results))
        self.states = [self.results[k] for k in states]
        self.pairs = {
            label: [(kind, self.results[a], self.results[b]) for kind, a, b in each]
            for label, each in pairs.items()
        }

    @property
    def summed(self) -> tuple[Expr, ...]:
        """What the loop writes for the sums after it, the gradients of the input products first."""
        states = set(self.step.of_role("state"))
        wanted = [self.results[k] for k in self.rows.values()]
        for each in self.pairs.values():
            wanted += [left for _, left, _ in each]
            wanted += [right for _, _, right in each if right not in states]
        count = len(self.step.of_role("input product"))
        # The first columns are those of the input products even if two are the same value.
        return (*wanted[:count], *dict.fromkeys(e for e in wanted[count:] if e not in wanted[:count]))

    def place(self, stores: list[tuple[Expr, Place]]) -> None:
        """Remember where the loop writes each value."""
        self.places: dict[Expr, Place] = {}
        for expr, place in stores:
            self.places.setdefault(expr, place)
        self.columns = {
            x.label: Place("gradients", c) for c, x in enumerate(self.step.of_role("input product"))
        }

    def after(self) -> tuple[Sum, ...]:
        """The sums after the loop."""
        before = {state: Place("before", c) for c, state in enumerate(self.step.of_role("state"))}
        made = []
        for label, each in self.pairs.items():
            left = tuple(self.places[a] for _, a, _ in each)
            right = tuple(before[b] if b in before else self.places[b] for _, _, b in each)
            made.append(Sum(label, each[0][0] if each else "outer", left, right))
        for label, k in self.rows.items():
            if label not in self.columns:
                made.append(Sum(label, "rows", (self.places[self.results[k]],)))
        made += [Sum(bias, "rows", (self.columns[x],)) for bias, x in self.moved.items()]
        return tuple(made)


def _expanded(expr: Expr, like: Expr) -> Expr:
    """A gradient as wide as what it belongs to; 0 where nothing flows."""
    return expr if expr.shape == like.shape else node("expand", expr, like)


def _outer_products(expr: Expr) -> list[Expr]:
    """The addends of a matrix's gradient."""
    if expr.op == "constant":
        return []
    if expr.op == "add":
        return [*_outer_products(expr.args[0]), *_outer_products(expr.args[1])]
    if expr.op not in ("outer", "blocks_outer"):
        raise CellError(f"the gradient of a matrix is made by {expr.op}, not by outer products")
    return [expr]
