"""One call for a whole sequence: packing, the products before the loop, the loop, the products after it.

Made once for every number format; the loop of a cell's kernel is called through a pointer. Threads run the
same function and wait for each other between the parts of a chunk of time steps: see `threads`.
"""

from __future__ import annotations

from cellfuse.codegen.cpu import large, products
from cellfuse.codegen.cpu.layout import NUMBERS
from cellfuse.codegen.cpu.target import Target
from cellfuse.codegen.cpu.text import Code, Int, Module
from cellfuse.codegen.cpu.threads import emit_enter, emit_enter_both, emit_meet, emit_own

# The table of a call: whole numbers and pointers.
CALL = (
    *("first", "last"),  # time steps of this call, in the order of computation
    *("chunk", "steps", "batch", "is_reverse"),  # time steps of a chunk; T; B
    "starts",  # T + 1 numbers: row of each time step
    "is_begin",  # whether matrices are to be packed and `copies` before the loop done
    "is_end",  # whether `copies` after the loop are to be done
    "shares_batch",  # whether threads share the sequences
    "shares_units",  # else how many of them share the units at most; 0: the first one runs the loop alone
    *("arrived", "arrived_inside"),  # threads counted at meeting points, also in the loop; 0 at the start
    *("run", "pack"),  # functions of the cell's kernel
    *("table", "table_size", "tables"),  # its slots, their number, and memory for a copy per thread
    *("scratch_slot", "scratch_size"),  # which of them is working memory, numbers a thread
    *("copies", "copies_before", "copies_after"),  # of COPY each; how many
    *("places", "place_count", "tensors"),  # of PLACE each; how many; where tensors begin: see `_emit_point`
    # the input product
    "project",  # 0: there is none, or it stands in memory already
    *("x", "input_size", "weight", "panels"),
    *("gates", "groups", "units", "per_group"),  # columns: gates x groups of units in `per_group` vectors
    *("biases", "bias"),  # two pointers a gate, null for none; memory for their padded sum
    *("products_slot", "products", "products_step", "products_whole"),  # whole: else memory of one chunk
    # after the backward loop
    *("gradients_slot", "gradients", "gradients_step", "gradients_whole"),
    *("dx", "dx_step", "turned_panels"),  # dx null: not wanted
    *("outers", "outer_count"),  # see OUTER
    "group",  # chunks whose products are summed by themselves, in `part`; 0: all in `out`
    *("rights", "lefts"),  # packed right operands; turned left ones, a block a thread
    *("sums", "lost"),  # of the gradients over all rows; what rounding took from each so far
)
# Rows copied from one place to another; the steps between rows in bytes.
COPY = ("to", "from", "bytes", "rows", "to_step", "from_step")
# An entry of a table that is to be the address so many bytes behind a tensor's start.
PLACE = ("entry", "tensor", "bytes")
# A product of gradients with other values, summed over rows.
OUTER = (
    *("left", "width"),  # columns of the gradients
    "right",  # row 0 of the other values; null: columns of the gradients from `column` on
    *("column", "right_step", "right_width"),
    *("out", "out_step"),
    "part",  # where the sums of a group of chunks are
    *("packed", "is_packed"),  # where in `rights`, in numbers for each row; whether it stands there already
)
RIGHT, OUT = OUTER.index("right"), OUTER.index("out")
_AT = {name: slot for slot, name in enumerate(CALL)}
_NUMBER = {name: slot for slot, name in enumerate(NUMBERS)}  # in the kernel's table


def emit_driver(bits: int, target: Target) -> str:
    """The text of forward and backward(call, thread, count), of enter_... for OpenMP, and of point(call)."""
    module = Module(bits, target.lanes(bits), shared=products.shared_name(bits, target))
    large.emit_large(module, target)
    _emit_point(module)
    for name in ("forward", "backward"):
        _Driver(module, target, name).emit()
        emit_enter(module, name)
        emit_enter_both(module, name)
    zeros = f"@zeros = internal constant [{16 * module.lanes} x {module.number}] zeroinitializer, align 64\n"
    return "\n".join((zeros, emit_meet(target), str(module)))


def _emit_point(module: Module) -> None:
    """Fill in every entry that is counted from where a tensor of this call begins."""
    code = Code(module)
    places, tensors = (code.slot("%call", _AT[name], "ptr") for name in ("places", "tensors"))
    with code.loop(0, code.slot("%call", _AT["place_count"], "i64")) as place:
        at = code.mul(place.index, len(PLACE))
        entry = code.slot(places, at, "ptr")
        tensor, shift = (code.slot(places, code.add(at, k), "i64") for k in (1, 2))
        address = code.add(code.slot(tensors, tensor, "i64"), shift)
        code.do(f"store i64 {address}, ptr {entry}, align 8")
    code.define("point", ("ptr %call",), "")


class _Driver:
    """The text of one function."""

    def __init__(self, module: Module, target: Target, name: str) -> None:
        self.code, self.target, self.is_backward = Code(module), target, name == "backward"
        self.name = name

    def _slot(self, name: str, type: str = "i64") -> str:
        return self.code.slot("%call", _AT[name], type)

    def _is(self, name: str) -> str:
        return self.code.let(f"icmp ne i64 {self._slot(name)}, 0")

    def _meet(self) -> None:
        self.code.do(f"call void @meet(ptr {self.arrived}, ptr {self.own}, i64 %count)")

    def _share(self, total: Int, unit: int = 1) -> tuple[str, str]:
        """This thread's part of some units of work."""
        code = self.code
        size: Int = code.let(f"udiv i64 {code.add(code.add(total, -1), '%count')}, %count")
        size = code.mul(code.let(f"udiv i64 {code.add(size, unit - 1)}, {unit}"), unit)
        first = code.smaller(code.mul("%thread", size), total)
        return first, code.smaller(code.add(first, size), total)

    def _where_first(self):  # type: ignore[no-untyped-def]
        return self.code.where(self.code.let("icmp eq i64 %thread, 0"))

    def _copy(self, to: str, source: str, size: Int) -> None:
        self.code.module.declare("llvm.memcpy.p0.p0.i64", "void", ["ptr", "ptr", "i64", "i1"])
        self.code.do(f"call void @llvm.memcpy.p0.p0.i64(ptr {to}, ptr {source}, i64 {size}, i1 false)")

    def _set(self, slot: Int, value: str, type: str = "i64") -> None:
        address = self.code.let(f"getelementptr i64, ptr {self.table}, i64 {slot}")
        self.code.do(f"store {type} {value}, ptr {address}, align 8")

    def emit(self) -> None:
        """The function."""
        code = self.code
        self.own = emit_own(code)
        self.arrived, self.starts = self._slot("arrived", "ptr"), self._slot("starts", "ptr")
        self.is_project, self.is_reverse = self._is("project"), self._is("is_reverse")
        self._own_table()
        with code.where(self._is("is_begin")):
            self._begin()
        self._meet()
        first, last, chunk = (self._slot(name) for name in ("first", "last", "chunk"))
        with code.loop(first, last, chunk) as loop:  # type: ignore[arg-type]
            size = code.smaller(chunk, code.sub(last, loop.index))
            begin: Int = loop.index
            if self.is_backward:
                begin = code.sub(code.sub(code.add(first, last), loop.index), size)
            self._chunk(begin, code.add(begin, size))
        with code.where(self._is("is_end")), self._where_first():
            before = self._slot("copies_before")
            self._copies(before, code.add(before, self._slot("copies_after")))
        code.define(self.name, ("ptr %call", "i64 %thread", "i64 %count"), "")

    def _own_table(self) -> None:
        """A copy of the kernel's slots, because each thread sets some of its own."""
        code = self.code
        size = code.mul(self._slot("table_size"), 8)
        own = code.mul(self._slot("table_size"), "%thread")
        self.table = code.let(f"getelementptr i64, ptr {self._slot('tables', 'ptr')}, i64 {own}")
        self._copy(self.table, self._slot("table", "ptr"), size)
        slot = self._slot("scratch_slot")
        scratch = code.slot(self.table, slot, "ptr")
        self._set(slot, code.at(scratch, code.mul("%thread", self._slot("scratch_size"))), "ptr")
        batch = self._slot("batch")
        first, last = self._share(batch)
        most, shares = self._slot("shares_units"), self._is("shares_batch")
        sharers = code.smaller("%count", most)
        is_inside = code.let(f"icmp slt i64 %thread, {sharers}")
        has_all = code.let(f"or i1 {code.let('icmp eq i64 %thread, 0')}, {is_inside}")
        alone = code.let(f"select i1 {has_all}, i64 {batch}, i64 0")
        self._set(_NUMBER["first_row"], code.let(f"select i1 {shares}, i64 {first}, i64 0"))
        self._set(_NUMBER["last_row"], code.let(f"select i1 {shares}, i64 {last}, i64 {alone}"))
        self._set(_NUMBER["thread"], code.let(f"select i1 {is_inside}, i64 %thread, i64 0"))
        self._set(_NUMBER["threads"], code.let(f"select i1 {is_inside}, i64 {sharers}, i64 1"))
        arrived, own = self._slot("arrived_inside", "ptr"), emit_own(code)
        for name, pointer in (("meet", "@meet"), ("arrived", arrived), ("own", own)):
            self._set(_NUMBER[name], pointer, "ptr")

    def _begin(self) -> None:
        """Matrices are packed: the last thread packs the loop's, all share the input's."""
        code = self.code
        is_last = code.let(f"icmp eq i64 %thread, {code.sub('%count', 1)}")
        with code.where(is_last):
            code.do(f"call void {self._slot('pack', 'ptr')}(ptr {self._slot('table', 'ptr')})")
        with self._where_first():
            self._copies(0, self._slot("copies_before"))
        size, weight = self._slot("input_size"), self._slot("weight", "ptr")
        gates, groups, units = (self._slot(name) for name in ("gates", "groups", "units"))
        with code.where(self.is_project):
            parts, per_part = code.mul(gates, groups), self._slot("per_group")
            first, last = self._share(code.mul(parts, per_part))
            code.do(
                f"call void @pack_rows(ptr {weight}, i64 {parts}, i64 {units}, i64 {per_part}, i64 {size}, "
                f"ptr {self._slot('panels', 'ptr')}, i64 {first}, i64 {last})"
            )
            with self._where_first():
                self._add_biases(gates, groups, units, per_part)
        if self.is_backward:
            has_dx = code.let(f"icmp ne ptr {self._slot('dx', 'ptr')}, null")
            with code.where(has_dx):
                lanes = code.lanes
                first, last = self._share(code.let(f"udiv i64 {code.add(size, lanes - 1)}, {lanes}"))
                rows = code.mul(code.mul(gates, groups), units)
                code.do(
                    f"call void @pack_columns(ptr {weight}, i64 {size}, i64 {rows}, i64 {size}, "
                    f"ptr {self._slot('turned_panels', 'ptr')}, i64 {first}, i64 {last})"
                )

    def _add_biases(self, gates: str, groups: str, units: str, per_group: str) -> None:
        code, pairs, bias = self.code, self._slot("biases", "ptr"), self._slot("bias", "ptr")
        padded = code.mul(per_group, code.lanes)
        with code.loop(0, gates) as gate:
            pair = code.mul(gate.index, 2)
            given = [code.slot(pairs, code.add(pair, k), "ptr") for k in range(2)]
            with code.loop(0, groups) as group, code.loop(0, units) as unit:
                at = code.add(code.mul(group.index, units), unit.index)
                values = []
                for pointer in given:
                    some = code.let(f"icmp ne ptr {pointer}, null")
                    safe = code.let(f"select i1 {some}, ptr {code.at(pointer, at)}, ptr @zeros")
                    values.append(code.load_number(safe))
                total = code.let(f"fadd {code.number} {values[0]}, {values[1]}")
                part = code.add(code.mul(gate.index, groups), group.index)
                code.store_number(total, bias, code.add(code.mul(part, padded), unit.index))

    def _copies(self, first: Int, last: Int) -> None:
        code, copies = self.code, self._slot("copies", "ptr")
        with code.loop(first, last) as copy:  # type: ignore[arg-type]
            at = code.mul(copy.index, len(COPY))
            to, source = (code.slot(copies, code.add(at, k), "ptr") for k in range(2))
            size, rows, to_step, from_step = (code.slot(copies, code.add(at, k), "i64") for k in range(2, 6))
            with code.loop(0, rows) as row:  # type: ignore[arg-type]
                shifts = code.mul(row.index, to_step), code.mul(row.index, from_step)
                places = [
                    code.let(f"getelementptr i8, ptr {base}, i64 {shift}")
                    for base, shift in zip((to, source), shifts, strict=True)
                ]
                self._copy(places[0], places[1], size)

    def _chunk(self, first: Int, last: Int) -> None:
        code = self.code
        steps = self._slot("steps")
        begin_step = code.let(f"select i1 {self.is_reverse}, i64 {code.sub(steps, last)}, i64 {first}")
        end_step = code.let(f"select i1 {self.is_reverse}, i64 {code.sub(steps, first)}, i64 {last}")
        begin, end = code.slot(self.starts, begin_step, "i64"), code.slot(self.starts, end_step, "i64")
        rows = code.sub(end, begin)
        self._set(_NUMBER["first"], str(first))
        self._set(_NUMBER["last"], str(last))
        products = self._base("products", begin)
        with code.where(self.is_project):
            self._project(begin, rows, products)
            self._meet()
        if self.is_backward:
            gradients = self._base("gradients", begin)
        code.do(f"call void {self._slot('run', 'ptr')}(ptr {self.table})")
        self._meet()
        if self.is_backward:
            step = code.mul(begin, self._slot("gradients_step"))
            chunk = code.at(gradients, step)
            number = code.let(f"udiv i64 {code.sub(steps, last)}, {self._slot('chunk')}")
            self._dx(begin, rows, chunk)
            self._outers(begin, rows, chunk, number, code.let(f"icmp eq i64 {first}, 0"))
            self._meet()

    def _base(self, name: str, begin: Int) -> str:
        """Where row 0 of a buffer would stand, of which one chunk may be all there is."""
        code = self.code
        given = self._slot(name, "ptr")
        shift = code.mul(begin, self._slot(f"{name}_step"))
        shift = code.let(f"select i1 {self._is(f'{name}_whole')}, i64 0, i64 {shift}")
        base = code.at(given, code.sub(0, shift))
        self._set(self._slot(f"{name}_slot"), base, "ptr")
        return base

    def _project(self, begin: str, rows: Int, products: str) -> None:
        code = self.code
        first, last = self._share(rows, self.target.tile_rows[self.target.tile_width])
        size, step = self._slot("input_size"), self._slot("products_step")
        row = code.add(begin, first)
        x, out = code.at(self._slot("x", "ptr"), code.mul(row, size)), code.at(products, code.mul(row, step))
        vectors = code.mul(code.mul(self._slot("gates"), self._slot("groups")), self._slot("per_group"))
        code.do(
            f"call void @gemm(ptr {x}, i64 {size}, ptr {self._slot('panels', 'ptr')}, i64 1, i64 {size}, "
            f"i64 {size}, ptr {self._slot('bias', 'ptr')}, ptr {out}, i64 {step}, "
            f"i64 {code.sub(last, first)}, i64 {vectors})"
        )

    def _dx(self, begin: str, rows: Int, gradients: str) -> None:
        code, dx = self.code, self._slot("dx", "ptr")
        with code.where(code.let(f"icmp ne ptr {dx}, null")):
            first, last = self._share(rows, self.target.tile_rows[self.target.tile_width])
            step, dx_step = self._slot("gradients_step"), self._slot("dx_step")
            parts = code.mul(self._slot("gates"), self._slot("groups"))
            units, padded = self._slot("units"), code.mul(self._slot("per_group"), code.lanes)
            is_dense = code.let(f"icmp eq i64 {units}, {padded}")
            all_units = code.mul(parts, units)
            parts = code.let(f"select i1 {is_dense}, i64 1, i64 {parts}")
            units = code.let(f"select i1 {is_dense}, i64 {all_units}, i64 {units}")
            out = code.at(dx, code.mul(code.add(begin, first), dx_step))
            code.do(
                f"call void @gemm(ptr {code.at(gradients, code.mul(first, step))}, i64 {step}, "
                f"ptr {self._slot('turned_panels', 'ptr')}, i64 {parts}, i64 {units}, i64 {padded}, "
                f"ptr null, ptr {out}, i64 {dx_step}, i64 {code.sub(last, first)}, "
                f"i64 {code.let(f'udiv i64 {dx_step}, {code.lanes}')})"
            )

    def _outer_slots(self, index: str) -> dict[str, str]:
        code = self.code
        at = code.mul(index, len(OUTER))
        outers = self._slot("outers", "ptr")
        pointers = ("right", "out", "part")
        return {
            name: code.slot(outers, code.add(at, k), "ptr" if name in pointers else "i64")
            for k, name in enumerate(OUTER)
        }

    def _outers(self, begin: str, rows: Int, gradients: str, number: str, is_last: str) -> None:
        """Gradients of matrices, some rows at a time; threads share the gradients' columns.

        Chunk `number` in a group adds to the group's sums, which are added to the gradients after its last
        one: additions to one sum are few, since its error grows with their number.
        """
        code, lanes = self.code, self.code.lanes
        step, rights = self._slot("gradients_step"), self._slot("rights", "ptr")
        count = self._slot("outer_count")
        lefts = code.at(self._slot("lefts", "ptr"), code.mul("%thread", large.LEFTS * large.STEPS))
        mine, end = self._share(step, lanes)
        group, is_grouped = self._slot("group"), self._is("group")
        size = code.let(f"select i1 {is_grouped}, i64 {group}, i64 {1 << 62}")
        place = code.let(f"urem i64 {number}, {size}")
        is_first = code.let(f"icmp eq i64 {number}, 0")
        is_group_first = code.let(f"icmp eq i64 {place}, 0")
        with code.loop(0, rows, large.STEPS) as block:
            n = code.smaller(code.sub(rows, block.index), large.STEPS)
            lines = code.at(gradients, code.mul(block.index, step))
            is_start = code.let(f"icmp eq i64 {block.index}, 0")
            is_new = code.let(f"and i1 {is_first}, {is_start}")
            is_group_new = code.let(f"and i1 {is_group_first}, {is_start}")
            with code.loop(0, count) as outer:
                self._pack_right(self._outer_slots(outer.index), begin, block.index, n, lines)
            self._meet()
            with code.loop(mine, end, large.LEFTS) as left:  # type: ignore[arg-type]
                stop = code.smaller(code.add(left.index, large.LEFTS), end)
                columns = code.sub(stop, left.index)
                code.do(
                    f"call void @turn(ptr {code.at(lines, left.index)}, i64 {step}, ptr {lefts}, i64 {n}, "
                    f"i64 {columns})"
                )
                with code.loop(0, count) as outer:
                    slots = self._outer_slots(outer.index)
                    low = self._larger(left.index, slots["left"])
                    high = code.smaller(stop, code.add(slots["left"], slots["width"]))
                    with code.where(code.let(f"icmp slt i64 {low}, {high}")):
                        turned = code.at(lefts, code.mul(code.sub(low, left.index), large.STEPS))
                        row = code.sub(low, slots["left"])
                        sums = code.let(f"select i1 {is_grouped}, ptr {slots['part']}, ptr {slots['out']}")
                        out = code.at(sums, code.mul(row, slots["out_step"]))
                        panels = code.at(rights, code.mul(slots["packed"], n))
                        code.do(
                            f"call void @outer_products(ptr {turned}, i64 {code.sub(high, low)}, i64 {n}, "
                            f"ptr {panels}, i64 {slots['right_width']}, ptr {out}, i64 {slots['out_step']}, "
                            f"i1 {is_group_new})"
                        )
            sums, lost = (code.at(self._slot(name, "ptr"), mine) for name in ("sums", "lost"))
            code.do(
                f"call void @add_rows(ptr {code.at(lines, mine)}, i64 {step}, i64 {n}, "
                f"i64 {code.sub(end, mine)}, ptr {sums}, ptr {lost}, i1 {is_new})"
            )
            self._meet()
        is_full = code.let(f"icmp eq i64 {code.add(place, 1)}, {size}")
        ends = code.let(f"or i1 {is_full}, {is_last}")
        with code.where(code.let(f"and i1 {is_grouped}, {ends}")), code.loop(0, count) as outer:
            slots = self._outer_slots(outer.index)
            low = self._larger(mine, slots["left"])
            high = code.smaller(end, code.add(slots["left"], slots["width"]))
            shift = code.mul(code.sub(low, slots["left"]), slots["out_step"])
            part, out = code.at(slots["part"], shift), code.at(slots["out"], shift)
            numbers = code.mul(code.sub(high, low), slots["out_step"])
            is_new = code.let(f"icmp slt i64 {number}, {group}")
            code.do(f"call void @add_all(ptr {part}, ptr {out}, i64 {numbers}, i1 {is_new})")

    def _pack_right(self, slots: dict[str, str], begin: str, block: str, n: str, lines: str) -> None:
        code, lanes = self.code, self.code.lanes
        row = code.mul(code.add(begin, block), slots["right_step"])
        is_own = code.let(f"icmp eq ptr {slots['right']}, null")
        other, own = code.at(slots["right"], row), code.at(lines, slots["column"])
        source = code.let(f"select i1 {is_own}, ptr {own}, ptr {other}")
        with code.where(code.let(f"icmp eq i64 {slots['is_packed']}, 0")):
            width = slots["right_width"]
            first, last = self._share(code.let(f"udiv i64 {code.add(width, lanes - 1)}, {lanes}"))
            panels = code.at(self._slot("rights", "ptr"), code.mul(slots["packed"], n))
            code.do(
                f"call void @pack_columns(ptr {source}, i64 {slots['right_step']}, i64 {n}, i64 {width}, "
                f"ptr {panels}, i64 {first}, i64 {last})"
            )

    def _larger(self, a: str, b: str) -> str:
        is_less = self.code.let(f"icmp slt i64 {a}, {b}")
        return self.code.let(f"select i1 {is_less}, i64 {b}, i64 {a}")
