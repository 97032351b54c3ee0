"""Results -> stages: what is computed when, and what is put aside between.

A stage ends where a whole row of values is needed: before a product with a matrix, after a sum over
the units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from cellfuse.codegen.program import Loop, Map, Place, Product, Stage, Stores, arguments
from cellfuse.codegen.rewrite import Sums
from cellfuse.errors import CellError
from cellfuse.graph.expr import Expr
from cellfuse.graph.ops import Shape

REDUCTIONS = ("sum", "amax")
SCANS = ("cumsum", "cumsum_reversed")


class Schedule:
    """When each node is computed.

    Args:
        results: what is wanted at the end of the step.
        ready: values that are in memory before the step, and where.
        sums: the terms of every sum of products.
    """

    def __init__(self, results: Sequence[Expr], ready: Mapping[Expr, Place], sums: Sums) -> None:
        self.results, self.ready, self.sums = results, dict(ready), sums
        self.nodes = self._order()
        self.at: dict[Expr, int] = {}
        for expr in self.nodes:
            when = self._whole_at if self._reads_whole(expr) else self._ready_at
            self.at[expr] = max((when(arg) for arg in self._reads(expr)), default=0)
        self._delay()

    def _is_ready(self, expr: Expr) -> bool:
        return expr in self.ready or expr.op in ("constant", "size")

    def _reads(self, expr: Expr) -> tuple[Expr, ...]:
        """The values a node is computed from, matrices left out."""
        if expr in self.sums:
            return tuple(term.operand for term in self.sums[expr])
        return arguments(expr)

    def _reads_whole(self, expr: Expr) -> bool:
        """Whether a node needs every unit of what it reads."""
        return expr in self.sums or expr.op in SCANS

    def _order(self) -> list[Expr]:
        done: dict[Expr, None] = {}
        stack = [(expr, False) for expr in reversed(self.results)]
        while stack:
            expr, is_last = stack.pop()
            if is_last:
                done[expr] = None
            elif expr not in done and not self._is_ready(expr):
                if expr.is_leaf:
                    raise CellError(f"{expr!r} is read but is in no buffer")
                stack.append((expr, True))
                stack.extend((arg, False) for arg in reversed(self._reads(expr)) if arg not in done)
        return list(done)

    def _ready_at(self, expr: Expr) -> int:
        """The first stage that can read a node unit by unit."""
        return 0 if self._is_ready(expr) else self.at[expr] + (expr.op in REDUCTIONS)

    def _whole_at(self, expr: Expr) -> int:
        """The first stage that can read all units of a node."""
        return 0 if self._is_ready(expr) else self.at[expr] + 1

    def _delay(self) -> None:
        """Move to the stage that reads it what can wait without more being put aside."""
        pinned = set(self.results)
        use: dict[Expr, int] = {}
        for expr in reversed(self.nodes):
            can_wait = expr in self.sums or all(self._is_ready(a) or not a.shape for a in self._reads(expr))
            if can_wait and expr in use and expr not in pinned and expr.op not in REDUCTIONS:
                self.at[expr] = use[expr]
            for arg in self._reads(expr):
                earlier = self._reads_whole(expr) or arg.op in REDUCTIONS
                use[arg] = min(use.get(arg, self.at[expr] - earlier), self.at[expr] - earlier)

    def free_from(self, expr: Expr) -> int:
        """The first stage at which the memory of a ready value may be written over, unit by unit."""
        readers = [node for node in self.nodes if expr in self._reads(node)]
        return max((self.at[node] + self._reads_whole(node) for node in readers), default=0)

    @cached_property
    def _read_elsewhere(self) -> set[Expr]:
        """Nodes that are read by another stage, by a map if they are numbers, or whole."""
        found = set()
        for expr in self.nodes:
            for arg in self._reads(expr):
                if not self._is_ready(arg) and not self._is_near(expr, arg):
                    found.add(arg)
            if expr.op in SCANS:
                found.add(expr)
        return found

    def _is_near(self, expr: Expr, arg: Expr) -> bool:
        """Whether a node is computed in the same loop over rows or units as what it reads."""
        if self._reads_whole(expr):
            return False
        if arg.shape:
            return self.at[arg] == self.at[expr]
        return not expr.shape and self._ready_at(arg) == self.at[expr]

    def loop(self, stores: Stores, prefix: str) -> tuple[Loop, list[Shape], int]:
        """The loop that brings results to places, the columns of its "temp" buffer, and how many numbers.

        A store that would overwrite what a later stage reads waits for it.
        """
        owner = {place: expr for expr, place in self.ready.items()}
        when: dict[tuple[Expr, Place], int] = {}
        aside = dict.fromkeys(expr for expr in self.nodes if expr in self._read_elsewhere)
        for expr, place in stores:
            ready_at = 0 if self._is_ready(expr) else self._ready_at(expr)
            when[expr, place] = max(ready_at, self.free_from(owner[place]) if place in owner else 0)
            if expr in self.at and when[expr, place] > self.at[expr]:
                aside[expr] = None
        places = dict(self.ready)
        temporary: list[Shape] = []
        numbers = 0
        more: list[tuple[Expr, Place]] = []
        for expr in aside:
            known = next((p for (e, p), s in when.items() if e is expr and s == self._ready_at(e)), None)
            if known is not None and known.buffer != "carry":
                places[expr] = known
            elif expr.shape:
                places[expr] = Place(f"{prefix}_temp", len(temporary))
                temporary.append(expr.shape)
                more.append((expr, places[expr]))
            else:
                places[expr] = Place(f"{prefix}_numbers", numbers)
                numbers += 1
                more.append((expr, places[expr]))
        for expr, place in more:
            when[expr, place] = self._ready_at(expr)
        last = max([*when.values(), *self.at.values()], default=0)
        stages = tuple(self._stage(s, when, places) for s in range(last + 1))
        return Loop(stages, places), temporary, numbers

    def _stage(self, s: int, when: dict[tuple[Expr, Place], int], places: dict[Expr, Place]) -> Stage:
        now = [(expr, place) for (expr, place), at in when.items() if at == s]
        scans = tuple((e, places[e]) for e in self.nodes if e.op in SCANS and self.at[e] == s)
        done = {expr for expr, _ in scans}
        numbers = tuple(e for e in self.nodes if not e.shape and self._ready_at(e) == s)
        maps = []
        for axis in ("H", "P"):
            of_axis = [e for e in self.nodes if self.at[e] == s and (axis,) == _axis(e) and e not in done]
            stores = tuple((e, p) for e, p in now if e.shape == (axis,) and (e, p) not in scans)
            if of_axis or stores:
                maps.append(
                    Map(
                        axis,
                        self._joined([e for e in of_axis if e in self.sums]),
                        tuple(e for e in of_axis if e not in self.sums and e.op not in REDUCTIONS),
                        tuple(e for e in of_axis if e.op in REDUCTIONS),
                        stores,
                    )
                )
        return Stage(scans, numbers, tuple((e, p) for e, p in now if not e.shape), tuple(maps))

    def _joined(self, products: list[Expr]) -> tuple[Product, ...]:
        """Sums of products of the same operands, made together."""
        groups: dict[tuple[Expr, ...], list[Expr]] = {}
        for expr in products:
            groups.setdefault(tuple(term.operand for term in self.sums[expr]), []).append(expr)
        return tuple(
            Product(tuple(group), tuple(self.sums[expr] for expr in group)) for group in groups.values()
        )


def _axis(expr: Expr) -> Shape:
    """The axis of the map that computes a node."""
    return expr.args[0].shape if expr.op in REDUCTIONS else expr.shape
