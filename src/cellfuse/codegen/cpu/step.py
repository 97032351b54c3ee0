"""Program -> the text of one time step on a user's own tensors: nothing is packed, padded or copied before.

For streaming, where a call is so short that preparing the loop of `emit` would be most of it. Rows of a
matrix are read where they stand, as long sums; this costs up to half of the speed with many sequences.
"""

from __future__ import annotations

from cellfuse.codegen.cpu.emit import LoopText
from cellfuse.codegen.cpu.layout import Layout
from cellfuse.codegen.cpu.products import is_by_head, within_matrix
from cellfuse.codegen.cpu.text import Code, Int, Module
from cellfuse.codegen.program import Map
from cellfuse.graph.ops import Shape

TOGETHER = 8  # rows read at a time; 16, 4 and 2 are 3 to 25 % slower on Zen 4 (64 to 512 units)

# A vector of sums of `lanes` rows: out = init + w[rows, k] a[k], for some sequences.
_DOTS = (
    *("ptr %w", "i64 %ldw", "i64 %valid", "ptr %a", "i64 %lda", "i64 %k"),
    *("ptr %init", "i64 %init_step", "ptr %out", "i64 %out_step", "i64 %rows"),
)


def emit_step(layout: Layout) -> tuple[str, int, int]:
    """The text of run_step, which takes a table of `layout.step_slots`; sizes as in `emit.Emitted`."""
    module = Module(layout.bits, layout.lanes, layout.target.has_slow_division)
    text = _StepText(module, layout)
    text.emit()
    _emit_dots(module)
    zeros = f"@zeros = internal constant [{layout.lanes} x {module.number}] zeroinitializer, align 64\n"
    return zeros + str(module), text.scratch, text.gathered * layout.lanes


class _StepText(LoopText):
    """The inference loop's body, once."""

    def __init__(self, module: Module, layout: Layout) -> None:
        super().__init__(module, layout, "infer")
        self.slots = layout.step_slots

    def _slot(self, name: str, type: str = "ptr") -> str:
        return self.code.slot("%slots", self.slots[name], type)

    def emit(self) -> None:
        """The function run_step(slots)."""
        code, layout, program = self.code, self.layout, self.layout.program
        names = [name for name, stride in layout.strides.items() if name != "states" and stride]
        self.pointers = {
            name: self._slot(name) for name in (*names, "scratch", "gathered") if name in self.slots
        }
        self.batch = self.last_row = self._slot("batch", "i64")
        self.first_row, self.start, self.is_odd = "0", "0", "false"
        self._copy_parameters()
        if program.inputs:
            self._project()
        self.slabs = {}
        shapes = program.buffers["states"].columns
        for k, shape in enumerate(shapes):
            for which in ("before", "after"):
                mine = self._slot(f"{which}.{k}")
                if self._is_padded(shape):
                    self.slabs[which, k] = self._slot(f"padded {which}.{k}")
                    if which == "before":
                        self._copy_rows(mine, self.slabs[which, k], shape, spread=True)
                else:
                    self.slabs[which, k] = mine
        for stage in self.loop.stages:
            self._stage(stage)
        for k, shape in enumerate(shapes):
            if self._is_padded(shape):
                self._copy_rows(self._slot(f"after.{k}"), self.slabs["after", k], shape, spread=False)
        place = program.output
        shape = shapes[place.column] if layout.is_state(place) else program.buffers["output"].columns[0]
        self._copy_rows(self._slot("y"), self._row(place, 0), shape, spread=False)
        code.define("run_step", ("ptr %slots",), "")

    def _is_padded(self, shape: Shape) -> bool:
        return bool(shape) and self.layout.is_padded(shape[0])

    def _units(self, shape: Shape) -> tuple[int, int, int]:
        """(parts, units of each, numbers of each in memory)."""
        if not shape:
            return 1, 1, 1
        layout = self.layout
        return layout.groups(shape[0]), layout.units(shape[0]), layout.vectors(shape[0]) * layout.lanes

    def _copy(self, target: str, source: str, numbers: int) -> None:
        self.code.module.declare("llvm.memcpy.p0.p0.i64", "void", ["ptr", "ptr", "i64", "i1"])
        size = numbers * self.layout.bits // 8
        self.code.do(f"call void @llvm.memcpy.p0.p0.i64(ptr {target}, ptr {source}, i64 {size}, i1 false)")

    def _copy_rows(self, dense: str, padded: str, shape: Shape, *, spread: bool) -> None:
        """Between a user's tensor [B, units] and memory with padding."""
        code, (groups, units, width) = self.code, self._units(shape)
        with code.loop(0, self.batch) as row:
            for group in range(groups if units != width else 1):
                count = units if units != width else groups * units
                theirs = code.at(dense, code.add(code.mul(row.index, groups * units), group * units))
                ours = code.at(padded, code.add(code.mul(row.index, groups * width), group * width))
                self._copy(ours, theirs, count) if spread else self._copy(theirs, ours, count)

    def _copy_parameters(self) -> None:
        """Everything that is read as one row at each step, together."""
        code, layout = self.code, self.layout
        for expr, place in self.loop.places.items():
            if place.buffer not in ("parameters", "constants"):
                continue
            groups, units, width = self._units(expr.shape)
            mine = code.at(self.pointers[place.buffer], layout.offset(place.buffer, place.column))
            for group in range(groups):
                theirs = code.at(self._slot(expr.label), group * units)
                self._copy(code.at(mine, group * width), theirs, units)

    def _project(self) -> None:
        """The input products and their biases, also the recurrent ones that were moved there."""
        code, layout, program = self.code, self.layout, self.layout.program
        stride, lanes, (groups, units, width) = layout.strides["products"], layout.lanes, self._units(("H",))
        bias, given, size = self._slot("bias"), self._slot("input"), self._slot("input_size", "i64")
        into = {x: label for label, x in program.moved}
        for place, gate in enumerate(program.inputs):
            offset = layout.offset("products", place)
            parts = [code.at(self._slot("bias_ih"), place * groups * units)]
            if f"{gate}.x" in into:
                parts.append(self._slot(into[f"{gate}.x"]))
            for group in range(groups):
                self._sum(code.at(bias, offset + group * width), parts, group * units, units)
        weight, products = self._slot("weight_ih"), self.pointers["products"]
        per_group = layout.vectors("H")
        with code.loop(0, len(program.inputs) * groups) as part, code.loop(0, per_group) as vector:
            first = code.mul(vector.index, lanes)
            unit = code.add(code.mul(part.index, units), first)
            at = code.add(code.mul(part.index, width), first)
            valid = code.smaller(code.sub(units, first), lanes)
            self._dots(
                (code.at(weight, code.mul(unit, size)), size, valid),
                (given, size, size),
                (code.at(bias, at), 0),
                (code.at(products, at), stride),
                self.batch,
            )

    def _sum(self, target: str, parts: list[str], first: int, units: int) -> None:
        """Biases added."""
        code, lanes = self.code, self.layout.lanes
        whole = units // lanes * lanes
        with code.loop(0, whole, lanes) as loop:
            values = [code.load(code.at(part, code.add(loop.index, first))) for part in parts]
            total = values[0] if len(values) == 1 else code.binary("fadd", *values)
            code.store(total, code.at(target, loop.index))
        with code.loop(whole, units) as loop:
            values = [code.load_number(part, code.add(loop.index, first)) for part in parts]
            total = values[0]
            if len(values) > 1:
                total = code.let(f"fadd {code.number} {values[0]}, {values[1]}")
            code.store_number(total, target, loop.index)

    def _dots(
        self,
        matrix: tuple[str, Int, Int],
        operand: tuple[str, Int, Int],
        init: tuple[str, Int],
        out: tuple[str, Int],
        rows: Int,
    ) -> None:
        types = [argument.split()[0] for argument in _DOTS]
        values = (*matrix, *operand, *init, *out, rows)
        text = ", ".join(f"{type} {value}" for type, value in zip(types, values, strict=True))
        self.code.do(f"call void @dots({text})")

    def _products(self, each: Map, block: str, first_row: str, rows: str, scratch_step: int) -> None:
        """The results of one block of columns, from the matrices as they stand."""
        code, layout = self.code, self.layout
        lanes, axis = layout.lanes, each.axis
        for tiling in self.tilings[id(each)]:
            per_group = layout.vectors(axis) // tiling.vectors
            group = code.let(f"udiv i64 {block}, {per_group}")
            inner = code.sub(block, code.mul(group, per_group))
            for v in range(tiling.vectors):
                first = code.mul(code.add(code.mul(inner, tiling.vectors), v), lanes)
                valid = code.smaller(code.sub(layout.units(axis), first), lanes)
                for s, terms in enumerate(tiling.product.terms):
                    column = tiling.column + (s * tiling.vectors + v) * lanes
                    out = code.at(self.pointers["scratch"], column), scratch_step
                    init: tuple[str, Int] = ("@zeros", 0)
                    for k, term in enumerate(terms):
                        assert not term.is_transposed, "no step multiplies by a transposed matrix"
                        place = self.loop.places[term.operand]
                        operand_axis = term.operand.shape[0]
                        width = layout.vectors(operand_axis) * lanes
                        by_head = is_by_head(tiling.product, k)
                        matrix = self._slot(term.matrix.label)
                        for head in range(1 if by_head else layout.groups(operand_axis)):
                            at, by_unit, _, length = within_matrix(
                                code, layout, term, axis, group, first, head
                            )
                            start = code.mul(group, width) if by_head else head * width
                            a = code.at(self._row(place, first_row), start)
                            self._dots(
                                (code.at(matrix, at), by_unit, valid),
                                (a, self._row_stride(place), length),
                                init,
                                out,
                                rows,
                            )
                            init = out


def _emit_dots(module: Module) -> None:
    code = Code(module)
    lanes, bits = module.lanes, module.bits
    last = code.sub("%valid", 1)
    lines = [code.at("%w", code.mul(code.smaller(row, last), "%ldw")) for row in range(lanes)]
    whole = code.let(f"and i64 %k, {-lanes}")
    counted = code.splat(str(code.sub("%k", whole)), "i64")
    numbers = ", ".join(f"i64 {lane}" for lane in range(lanes))
    inside = code.let(f"icmp slt <{lanes} x i64> <{numbers}>, {counted}")
    masked = f"llvm.masked.load.v{lanes}f{bits}.p0"
    code.module.declare(masked, code.vector, ["ptr", "i32", code.truths, code.vector])

    def load(pointer: str, k: str, is_whole: bool) -> str:
        address = code.at(pointer, k)
        if is_whole:
            return code.load(address)
        return code.let(
            f"call {code.vector} @{masked}(ptr {address}, i32 {bits // 8}, {code.truths} {inside}, "
            f"{code.vector} zeroinitializer)"
        )

    together = min(TOGETHER, lanes)
    ahead = lanes // together
    far = code.let(f"and i64 %k, {-lanes * ahead}")
    with code.loop(0, "%rows") as row:
        a = code.at("%a", code.mul(row.index, "%lda"))
        totals: list[str] = []
        for first in range(0, lanes, together):
            some = lines[first : first + together]
            sums = [code.constant(0.0)] * lanes
            with code.loop(0, far, lanes * ahead, [(code.vector, value) for value in sums]) as loop:
                loop.next = []
                for piece in range(ahead):
                    k = str(code.add(loop.index, piece * lanes))
                    operand = load(a, k, True)
                    olds = loop.values[piece * together : (piece + 1) * together]
                    for line, old in zip(some, olds, strict=True):
                        loop.next.append(code.fma(load(line, k, True), operand, old))
            sums = loop.results
            while len(sums) > together:
                half = len(sums) // 2
                sums = [code.binary("fadd", x, y) for x, y in zip(sums[:half], sums[half:], strict=True)]
            for is_whole in (True, False):
                ends = (far, whole) if is_whole else (whole, "%k")
                with code.loop(*ends, lanes, [(code.vector, value) for value in sums]) as loop:
                    operand = load(a, loop.index, is_whole)
                    pairs = zip(some, loop.values, strict=True)
                    loop.next = [
                        code.fma(load(line, loop.index, is_whole), operand, old) for line, old in pairs
                    ]
                sums = loop.results
            totals += sums
        total = code.binary(
            "fadd", _summed(code, totals), code.load(code.at("%init", code.mul(row.index, "%init_step")))
        )
        code.store(total, code.at("%out", code.mul(row.index, "%out_step")))
    code.define("dots", _DOTS)
    module.functions["dots"] = module.functions["dots"].replace("nounwind", "nounwind noinline", 1)


def _summed(code: Code, vectors: list[str]) -> str:
    """Lane l: the sum over all lanes of vector l."""
    lanes = code.lanes
    step = lanes // 2
    while step:
        low = [lane if not lane & step else lanes + (lane ^ step) for lane in range(lanes)]
        high = [lane | step if not lane & step else lanes + lane for lane in range(lanes)]
        vectors = [
            code.binary("fadd", code.shuffle(a, b, low), code.shuffle(a, b, high))
            for a, b in zip(vectors[:step], vectors[step:], strict=True)
        ]
        step //= 2
    return vectors[0]
