"""Program -> the text of its three loops and of the packing of its matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cellfuse.codegen.cpu import products
from cellfuse.codegen.cpu.layout import Layout
from cellfuse.codegen.cpu.products import ROWS, Tiling
from cellfuse.codegen.cpu.spell import SPELL
from cellfuse.codegen.cpu.text import Code, Int, Module
from cellfuse.codegen.program import Buffer, Loop, Map, Place, Stage, arguments
from cellfuse.codegen.schedule import REDUCTIONS
from cellfuse.graph.expr import Expr

_NONE = Buffer("once", ())
LOOPS = ("infer", "forward", "backward")


@dataclass(frozen=True)
class Emitted:
    """The text of a kernel and how much memory it wants.

    Attributes:
        text: LLVM IR with the functions run_<loop> and pack_<loop>, which take a table of slots.
        is_far: which tiles it calls, see `products.emit_tiles`.
        weights: numbers in the packed matrices of each loop.
        scratch: numbers of working memory.
        gathered: numbers for each row of sums over units that are being made.
        shareable: of the loops whose units threads can share, how many threads find work.
    """

    text: str
    is_far: bool
    weights: dict[str, int]
    scratch: int
    gathered: int
    shareable: dict[str, int]


def emit(layout: Layout, loops: tuple[str, ...] = LOOPS) -> Emitted:
    """The text of some loops of a program."""
    module = Module(layout.bits, layout.lanes, layout.target.has_slow_division)
    made = [LoopText(module, layout, name) for name in loops]
    weights = {loop.name: loop.weights for loop in made}
    is_far = max(weights.values(), default=0) * layout.bits // 8 > products.FAR
    module.shared = products.shared_name(layout.bits, layout.target, is_far)
    for loop in made:
        tilings = [t for each in loop.tilings.values() for t in each]
        products.emit_pack(module, layout, loop.name, tilings)
        loop.emit()
    scratch, gathered = (max(getattr(loop, n) for loop in made) for n in ("scratch", "gathered"))
    zeros = f"@zeros = internal constant [{16 * layout.lanes} x {module.number}] zeroinitializer, align 64\n"
    shareable = {loop.name: loop.most_threads() for loop in made if loop.is_shareable}
    return Emitted(zeros + str(module), is_far, weights, scratch, gathered * layout.lanes, shareable)


class LoopText:
    """One loop over time."""

    packed: str

    def __init__(self, module: Module, layout: Layout, name: str) -> None:
        self.layout, self.name = layout, name
        self.loop: Loop = getattr(layout.program, name)
        self.code = Code(module)
        self.tilings: dict[int, list[Tiling]] = {}
        self.weights, self.scratch, self.gathered = 0, 0, 0
        self.sum_columns: dict[Expr, int] = {}
        for stage in self.loop.stages:
            for each in stage.maps:
                made = products.tile(layout, each.axis, each.products, self.loop.places, self.weights)
                self.tilings[id(each)] = made
                for tiling in made:
                    size = layout.width((each.axis,)) * len(tiling.product.results) * tiling.depth
                    self.weights = tiling.offset + size
                wide = sum(tiling.width for tiling in made) * layout.lanes
                self.scratch = max(self.scratch, wide * ROWS)
                for expr in each.reductions:
                    self.sum_columns[expr] = len(self.sum_columns)
        self.gathered = len(self.sum_columns)
        # What is made of all units of a row together is not for several threads.
        self.is_shareable = not self.sum_columns and not any(
            stage.scans or stage.numbers or stage.stores for stage in self.loop.stages
        )
        self.threads = ""  # that share the units, in a loop of which threads may

    def emit(self) -> None:
        """The function run_<name>(slots)."""
        code, slots = self.code, self.layout.slots
        used = {place.buffer for place in self.loop.places.values()}
        for stage in self.loop.stages:
            used |= {place.buffer for _, place in stage.stores}
            used |= {place.buffer for each in stage.maps for _, place in each.stores}
        self.pointers = {
            name: code.slot("%slots", slots[name], "ptr")
            for name in (*sorted(used - {"before", "after"}), "scratch", "gathered", "starts")
        }
        self.packed = code.slot("%slots", slots[f"{self.name}_weights"], "ptr")
        names = ("first", "last", "origin", "direction", "first_row", "last_row")
        number = {n: code.slot("%slots", slots[n], "i64") for n in names}
        self.first_row, self.limit = number["first_row"], number["last_row"]
        if self.is_shareable:
            self._find_share()
        self.batch = code.slot("%slots", slots["batch"], "i64")
        self.states = []
        for column in range(len(self.layout.program.buffers["states"].columns)):
            of = [code.slot("%slots", slots[f"{n}.{column}"], "ptr") for n in ("states", "initial")]
            self.states.append((*of, code.slot("%slots", slots[f"mask.{column}"], "i64")))
        self.ahead = code.mul(self.batch, number["direction"])
        if self.name == "backward":
            self.ahead = code.sub(0, self.ahead)
        with code.loop(number["first"], number["last"]) as loop:
            step = loop.index
            if self.name == "backward":
                passed = code.sub(loop.index, number["first"])
                step = str(code.sub(code.sub(number["last"], 1), passed))
            time = code.add(number["origin"], code.mul(step, number["direction"]))
            self._step(step, str(time), str(code.sub(time, number["direction"])))
        code.define(f"run_{self.name}", ("ptr %slots",), "")

    def _find_share(self) -> None:
        code, slots = self.code, self.layout.slots
        thread, threads = (code.slot("%slots", slots[n], "i64") for n in ("thread", "threads"))
        self.is_shared = code.let(f"icmp sgt i64 {threads}, 1")  # 0: who calls the loop without the driver
        self.threads = code.let(f"select i1 {self.is_shared}, i64 {threads}, i64 1")
        self.meeting = [code.slot("%slots", slots[n], "ptr") for n in ("meet", "arrived", "own")]
        parts = {self._parts(each) for stage in self.loop.stages for each in stage.maps}
        self.shares = {
            count: [
                code.let(f"udiv i64 {code.mul(code.add(thread, k), count)}, {self.threads}") for k in range(2)
            ]
            for count in sorted(parts)
        }

    def _step(self, step: str, time: str, time_before: str) -> None:
        code = self.code
        self.start = code.slot(self.pointers["starts"], time, "i64")
        alive = code.sub(code.slot(self.pointers["starts"], code.add(time, 1), "i64"), self.start)
        self.last_row = code.smaller(alive, self.limit)
        is_first = code.let(f"icmp eq i64 {step}, 0")
        self.is_odd = code.let(f"trunc i64 {step} to i1")
        self.slabs: dict[tuple[str, int], str] = {}
        for column, (slabs, initial, mask) in enumerate(self.states):
            size = code.mul(self.batch, self._state_width(column))
            for name, t in (("before", time_before), ("after", time)):
                slab = code.at(slabs, code.mul(code.let(f"and i64 {t}, {mask}"), size))
                if name == "before":
                    slab = code.let(f"select i1 {is_first}, ptr {initial}, ptr {slab}")
                self.slabs[name, column] = slab
        for stage in self.loop.stages:
            self._stage(stage)

    def _state_width(self, column: int) -> int:
        return self.layout.width(self.layout.program.buffers["states"].columns[column])

    def _row_stride(self, place: Place) -> int:
        if self.layout.is_state(place):
            return self._state_width(place.column)
        return self.layout.strides[place.buffer]

    def _row(self, place: Place, row: Int) -> str:
        """Address of a place in a row of this time step."""
        code = self.code
        if self.layout.is_state(place):
            slab = self.slabs[place.buffer, place.column]
            return code.at(slab, code.mul(row, self._state_width(place.column)))
        rows = self.layout.program.buffers[place.buffer].rows
        row = {"time": code.add(self.start, row) if rows == "time" else row, "batch": row, "once": 0}[rows]
        base = code.at(self.pointers[place.buffer], code.mul(row, self.layout.strides[place.buffer]))
        return code.at(base, self.layout.offset(place.buffer, place.column))

    def prefetch(self, place: Place, address: str) -> None:
        """Ask for the same vector of the next time step, which is too far away for the processor to guess.

        Without gradients the input products are still in the second-level cache.
        """
        if self.name == "infer" or self.layout.program.buffers.get(place.buffer, _NONE).rows != "time":
            return
        code = self.code
        ahead = code.at(address, code.mul(self.ahead, self.layout.strides[place.buffer]))
        code.prefetch(ahead)

    def _stage(self, stage: Stage) -> None:
        code = self.code
        if stage.scans:
            with code.loop(self.first_row, self.last_row) as row:
                for expr, place in stage.scans:
                    self._scan(expr, self._row(place, row.index), row.index)
        if stage.numbers or stage.stores:
            with code.loop(self.first_row, self.last_row) as row:
                values = _Values(self, row.index, 0)
                for expr in stage.numbers:
                    if expr in self.sum_columns:
                        values.made[expr] = self._gathered(expr, row.index)
                    else:
                        values.compute(expr)
                for expr, place in stage.stores:
                    code.store_number(code.first(values.number(expr)), self._row(place, row.index))
        for each in stage.maps:
            self._map(each)
        if self.threads:
            with code.where(self.is_shared):
                meet, arrived, own = self.meeting
                code.do(f"call void {meet}(ptr {arrived}, ptr {own}, i64 {self.threads})")

    def _blocks(self, each: Map) -> tuple[int, int]:
        """How many blocks of columns the work on an axis has, and the vectors of one."""
        groups, per_group = self.layout.groups(each.axis), self.layout.vectors(each.axis)
        tilings = self.tilings[id(each)]
        if not tilings:
            return 1, groups * per_group
        return groups * (per_group // tilings[0].vectors), tilings[0].vectors

    def _parts(self, each: Map) -> int:
        """Parts of a map that threads can share: blocks, or the vectors of the only one."""
        blocks, vectors = self._blocks(each)
        return blocks if self.tilings[id(each)] else vectors

    def most_threads(self) -> int:
        """How many threads find work if they share the units: in the products, which take the time."""
        maps = [each for stage in self.loop.stages for each in stage.maps]
        return max((self._blocks(each)[0] for each in maps if self.tilings[id(each)]), default=1)

    def _sum_address(self, expr: Expr, row: str) -> str:
        code = self.code
        line = code.at(self.pointers["gathered"], code.mul(row, self.gathered * code.lanes))
        return code.at(line, self.sum_columns[expr] * code.lanes)

    def _gathered(self, expr: Expr, row: str) -> str:
        """The sum or maximum over the lanes of what a map has gathered."""
        code = self.code
        value = code.load(self._sum_address(expr, row))
        kind = f"v{code.lanes}f{self.layout.bits}"
        if expr.op == "sum":
            name, first = f"llvm.vector.reduce.fadd.{kind}", [code.number]
            call = f"call reassoc {code.number} @{name}({code.number} {code.literal(-0.0)}, "
        else:
            name, first = f"llvm.vector.reduce.fmaximum.{kind}", []
            call = f"call {code.number} @{name}("
        code.module.declare(name, code.number, [*first, code.vector])
        return code.splat(code.let(f"{call}{code.vector} {value})"))

    def _scan(self, expr: Expr, target: str, row: str) -> None:
        """Running sums over the units of one row, in double precision as torch has them."""
        code, layout = self.code, self.layout
        source = self._row(self.loop.places[expr.args[0]], row)
        axis = expr.shape[0]
        units, groups = layout.units(axis), layout.groups(axis)
        padded = layout.vectors(axis) * code.lanes
        total = code.literal(0.0)
        with code.loop(0, groups, 1, [("double", total)]) as group:
            with code.loop(0, units, 1, [("double", group.values[0])]) as unit:
                place = code.add(code.mul(group.index, padded), unit.index)
                if expr.op == "cumsum_reversed":
                    back = code.mul(code.sub(groups - 1, group.index), padded)
                    place = code.add(back, code.sub(units - 1, unit.index))
                number = code.load_number(source, place)
                if layout.bits == 32:
                    number = code.let(f"fpext float {number} to double")
                total = code.let(f"fadd double {unit.values[0]}, {number}")
                rounded = code.let(f"fptrunc double {total} to float") if layout.bits == 32 else total
                code.store_number(rounded, target, place)
                unit.next = [total]
            group.next = unit.results

    def _map(self, each: Map) -> None:
        code, tilings = self.code, self.tilings[id(each)]
        for expr in each.reductions:
            start = code.constant(-math.inf if expr.op == "amax" else 0.0)
            with code.loop(self.first_row, self.last_row) as row:
                code.store(start, self._sum_address(expr, row.index))
        scratch_step = sum(t.width for t in tilings) * code.lanes
        blocks, vectors = self._blocks(each)
        first, last = self.shares[blocks] if self.threads and tilings else (0, blocks)
        begin, end = self.shares[vectors] if self.threads and not tilings else (0, vectors)
        with code.loop(first, last) as counter:
            # Back and forth: the matrices' last part is still in the first-level cache.
            back = code.sub(code.sub(code.add(first, last), 1), counter.index)
            block = code.let(f"select i1 {self.is_odd}, i64 {back}, i64 {counter.index}")
            with code.loop(self.first_row, self.last_row, ROWS) as piece:
                rows = code.smaller(code.sub(self.last_row, piece.index), ROWS)
                self._products(each, block, piece.index, rows, scratch_step)
                with code.loop(0, rows) as row, code.loop(begin, end) as vector:
                    place = code.add(code.mul(block, vectors), vector.index)
                    line = code.at(self.pointers["scratch"], code.mul(row.index, scratch_step))
                    line = code.at(line, code.mul(vector.index, code.lanes))
                    self._vector(each, str(code.add(piece.index, row.index)), place, line)

    def _products(self, each: Map, block: str, first_row: str, rows: str, scratch_step: int) -> None:
        """The results of one block of columns for some rows, to the scratch memory."""
        code, layout = self.code, self.layout
        per_group = layout.vectors(each.axis)
        for tiling in self.tilings[id(each)]:
            operands: dict[products.Part, tuple[str, Int]] = {}
            for part in tiling.parts:
                column: Int = part.column
                if part.is_by_head:
                    head = code.let(f"udiv i64 {block}, {per_group // tiling.vectors}")
                    column = code.add(column, code.mul(head, per_group * code.lanes))
                address = code.at(self._row(part.place, first_row), column)
                operands[part] = (address, self._row_stride(part.place))
            scratch = self.pointers["scratch"]
            products.emit_product(code, tiling, block, rows, operands, self.packed, scratch, scratch_step)

    def _vector(self, each: Map, row: str, place: Int, scratch: str) -> None:
        """The work on one vector of units of one row."""
        code = self.code
        values = _Values(self, row, code.mul(place, code.lanes))
        for tiling in self.tilings[id(each)]:
            for s, result in enumerate(tiling.product.results):
                offset = tiling.column + s * tiling.vectors * code.lanes
                values.made[result] = code.load(scratch, offset)
        for expr in each.nodes:
            values.compute(expr)
        for expr in each.reductions:
            self._gather(expr, values.get(expr.args[0]), row, place, each.axis)
        ready = [(values.number(expr), target) for expr, target in each.stores]
        for value, target in ready:
            code.store(value, values.address(target))

    def _gather(self, expr: Expr, value: str, row: str, place: Int, axis: str) -> None:
        code, layout = self.code, self.layout
        is_sum = expr.op == "sum"
        if layout.is_padded(axis):
            # Lanes behind the last unit hold anything.
            within = code.let(f"urem i64 {place}, {layout.vectors(axis)}")
            left = code.sub(layout.units(axis), code.mul(within, code.lanes))
            lanes = ", ".join(f"i64 {lane}" for lane in range(code.lanes))
            counted = code.splat(str(left), "i64")
            inside = code.let(f"icmp slt <{code.lanes} x i64> <{lanes}>, {counted}")
            value = code.select(inside, value, code.constant(0.0 if is_sum else -math.inf))
        address = self._sum_address(expr, row)
        old = code.load(address)
        new = code.binary("fadd", old, value) if is_sum else code.call("maximum", old, value)
        code.store(new, address)


class _Values:
    """The values of one vector of units, or of one row's numbers: computed, or read from their places."""

    def __init__(self, text: LoopText, row: str, unit: Int) -> None:
        self.text, self.code, self.row, self.unit = text, text.code, row, unit
        self.made: dict[Expr, str] = {}

    def address(self, place: Place) -> str:
        """Where the vector stands."""
        return self.code.at(self.text._row(place, self.row), self.unit)

    def get(self, expr: Expr) -> str:
        """The value of a node."""
        if expr not in self.made:
            self.made[expr] = self._read(expr)
        return self.made[expr]

    def number(self, expr: Expr) -> str:
        """The value of a node as it is stored: 1 for true, 0 for false."""
        value, code = self.get(expr), self.code
        return code.select(value, code.constant(1.0), code.constant(0.0)) if expr.is_truth else value

    def _read(self, expr: Expr) -> str:
        code = self.code
        if expr.op == "constant":
            return code.constant(expr.value)
        if expr.op == "size":
            sizes = self.text.layout.sizes
            return code.constant(sizes.hidden if expr.label == "H" else sizes.projected)
        place = self.text.loop.places[expr]
        if not expr.shape:
            value = code.splat(code.load_number(self.text._row(place, self.row)))
        else:
            address = self.address(place)
            self.text.prefetch(place, address)
            value = code.load(address)
        return code.compare("une", value, code.constant(0.0)) if expr.is_truth else value

    def compute(self, expr: Expr) -> None:
        """An operation on values."""
        assert expr.op not in REDUCTIONS
        self.made[expr] = SPELL[expr.op](self.code, *(self.get(arg) for arg in arguments(expr)))
