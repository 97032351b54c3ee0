"""The large products before and after the loop over time, on a user's own matrices and any sizes.

They are not part of a cell's kernel: `driver` has them once for every number format.
"""

from __future__ import annotations

from cellfuse.codegen.cpu import products
from cellfuse.codegen.cpu.target import Target
from cellfuse.codegen.cpu.text import Code, Int, Module

ROWS = 192  # of a block of the left matrix that stays in the second-level cache
DEPTH = 256  # of a block of the sum, so that the right matrix's part stays near
LEFTS = 240  # columns of a block of the turned left matrix
STEPS = 512  # rows whose outer products are summed at a time
RUN = 128  # of them in one go; longer runs of additions have larger errors
TERMS = 16  # rows of gradients that are added one after the other, as in torch's sum

_GEMM = (
    *("ptr %a", "i64 %lda", "ptr %panels", "i64 %parts", "i64 %units", "i64 %padded"),
    *("ptr %init", "ptr %out", "i64 %ldo", "i64 %rows", "i64 %vectors"),
)


def emit_large(module: Module, target: Target) -> None:
    """gemm, pack_rows, pack_columns, outer_products, add_all and add_rows, with what they call."""
    _emit_panel(module, target)
    _emit_gemm(module, target)
    _emit_pack_rows(module, target)
    _emit_pack_columns(module, target)
    _emit_turn(module)
    _emit_outer(module, target)
    _emit_add_all(module)
    _emit_add_rows(module)


def _emit_panel(module: Module, target: Target) -> None:
    """rows_<width> for a width that is known only at run time."""
    code = Code(module)
    for width in code.switch("%width", range(1, target.tile_width + 1)):
        products.call_rows(code, width, ", ".join((*products.TILE, "i64 %rows")))
    code.define("panel", (*products.TILE, "i64 %rows", "i64 %width"))


def _panel(code: Code, *arguments: Int) -> None:
    types = ("ptr", "i64", "ptr", "i64", "ptr", "i64", "ptr", "i64", "i64", "i64")
    code.do(f"call void @panel({', '.join(f'{t} {a}' for t, a in zip(types, arguments, strict=True))})")


def _emit_gemm(module: Module, target: Target) -> None:
    """out[rows, vectors] = init + a[rows, parts x units] panels.

    The parts of a row of `a` are `padded` numbers apart; `init` is one row, or null for zeros.
    """
    code, lanes = Code(module), module.lanes
    depth = code.mul("%parts", "%units")
    has_init = code.let("icmp ne ptr %init, null")
    with code.loop(0, "%rows", ROWS) as block:
        rows = code.smaller(code.sub("%rows", block.index), ROWS)
        a = code.at("%a", code.mul(block.index, "%lda"))
        out_rows = code.at("%out", code.mul(block.index, "%ldo"))
        with code.loop(0, "%vectors", target.tile_width) as column:
            width = code.smaller(code.sub("%vectors", column.index), target.tile_width)
            at = code.mul(column.index, lanes)
            panel, out = code.at("%panels", code.mul(at, depth)), code.at(out_rows, at)
            given = code.at("%init", at)
            init = code.let(f"select i1 {has_init}, ptr {given}, ptr @zeros")
            line = code.mul(width, lanes)
            with code.loop(0, "%parts", 1, [("ptr", init), ("i64", "0")]) as part:
                carried = [("ptr", part.values[0]), ("i64", part.values[1])]
                with code.loop(0, "%units", DEPTH, carried) as k:
                    length = code.smaller(code.sub("%units", k.index), DEPTH)
                    left = code.at(a, code.add(code.mul(part.index, "%padded"), k.index))
                    place = code.add(code.mul(part.index, "%units"), k.index)
                    right = code.at(panel, code.mul(place, line))
                    _panel(code, left, "%lda", right, length, *k.values, out, "%ldo", rows, width)
                    k.next = [out, "%ldo"]
                part.next = k.results
    code.define("gemm", _GEMM)


def _emit_pack_rows(module: Module, target: Target) -> None:
    """Panels of the transpose of w[parts x units, k]; each part padded to whole vectors.

    Vectors from `first` to `last` are packed, so that threads can share the work.
    """
    code, lanes = Code(module), module.lanes
    total = code.mul("%parts", "%per_part")
    with code.loop("%first", "%last") as vector:
        part = code.let(f"udiv i64 {vector.index}, %per_part")
        inner = code.mul(code.sub(vector.index, code.mul(part, "%per_part")), lanes)
        row = code.add(code.mul(part, "%units"), inner)
        valid = code.smaller(code.sub("%units", inner), lanes)
        _strip(code, target, vector.index, total, ("%w", code.mul(row, "%k"), "%k", 1), "%k", valid)
    arguments = ("ptr %w", "i64 %parts", "i64 %units", "i64 %per_part", "i64 %k", "ptr %panels")
    code.define("pack_rows", (*arguments, "i64 %first", "i64 %last"))


def _emit_pack_columns(module: Module, target: Target) -> None:
    """Panels of w[k, columns], rows `ldw` apart, padded to whole vectors; of vectors `first` to `last`."""
    code, lanes = Code(module), module.lanes
    total = code.let(f"udiv i64 {code.add('%columns', lanes - 1)}, {lanes}")
    with code.loop("%first", "%last") as vector:
        start = code.mul(vector.index, lanes)
        valid = code.smaller(code.sub("%columns", start), lanes)
        _strip(code, target, vector.index, total, ("%w", start, 1, "%ldw"), "%k", valid)
    arguments = ("ptr %w", "i64 %ldw", "i64 %k", "i64 %columns", "ptr %panels", "i64 %first", "i64 %last")
    code.define("pack_columns", arguments)


def _strip(
    code: Code, target: Target, vector: str, total: Int, source: tuple[str, Int, Int, Int], k: Int, valid: Int
) -> None:
    """Pack one vector of columns into its panel."""
    lanes, most = code.lanes, target.tile_width
    pointer, offset, by_unit, by_k = source
    within = code.let(f"urem i64 {vector}, {most}")
    first = code.sub(vector, within)
    step = code.mul(code.smaller(code.sub(total, first), most), lanes)
    out = code.at("%panels", code.add(code.mul(code.mul(first, lanes), k), code.mul(within, lanes)))
    strip = f"ptr {code.at(pointer, offset)}, i64 {by_unit}, i64 {by_k}, ptr {out}, i64 {step}, i64 {k}, "
    products.call_pack_strip(code, strip + f"i64 {valid}")


def _emit_turn(module: Module) -> None:
    """out[column, row] = a[row, column], rows `lda` apart; rows up to the next whole vector are 0."""
    code, lanes = Code(module), module.lanes
    with code.loop(0, "%rows", lanes) as row:
        valid = code.smaller(code.sub("%rows", row.index), lanes)
        a, out = code.at("%a", code.mul(row.index, "%lda")), code.at("%out", row.index)
        strip = f"ptr {a}, i64 %lda, i64 1, ptr {out}, i64 {STEPS}, i64 %columns, i64 {valid}"
        products.call_pack_strip(code, strip)
    code.define("turn", ("ptr %a", "i64 %lda", "ptr %out", "i64 %rows", "i64 %columns"))


def _emit_outer(module: Module, target: Target) -> None:
    """out[rows, columns] (+)= turned[rows, k] panels, where `turned` has rows of STEPS numbers."""
    code, lanes = Code(module), module.lanes
    vectors = code.let(f"udiv i64 {code.add('%columns', lanes - 1)}, {lanes}")
    step = code.let("select i1 %is_first, i64 0, i64 %ldo")
    with code.loop(0, vectors, target.tile_width) as column:
        width = code.smaller(code.sub(vectors, column.index), target.tile_width)
        at = code.mul(column.index, lanes)
        out = code.at("%out", at)
        init = code.let(f"select i1 %is_first, ptr @zeros, ptr {out}")
        panel, line = code.at("%panels", code.mul(at, "%k")), code.mul(width, lanes)
        with code.loop(0, "%k", RUN, [("ptr", init), ("i64", step)]) as k:
            length = code.smaller(code.sub("%k", k.index), RUN)
            left, right = code.at("%turned", k.index), code.at(panel, code.mul(k.index, line))
            _panel(code, left, STEPS, right, length, *k.values, out, "%ldo", "%rows", width)
            k.next = [out, "%ldo"]
    arguments = ("ptr %turned", "i64 %rows", "i64 %k", "ptr %panels", "i64 %columns", "ptr %out", "i64 %ldo")
    code.define("outer_products", (*arguments, "i1 %is_first"))


def _emit_add_all(module: Module) -> None:
    """total[count] (+)= part[count], whole vectors."""
    code = Code(module)
    with code.loop(0, "%count", code.lanes) as vector:
        total, part = (code.at(pointer, vector.index) for pointer in ("%total", "%part"))
        old = code.load(code.let(f"select i1 %is_first, ptr @zeros, ptr {total}"))
        code.store(code.binary("fadd", old, code.load(part)), total)
    code.define("add_all", ("ptr %part", "ptr %total", "i64 %count", "i1 %is_first"))


def _emit_add_rows(module: Module) -> None:
    """total[columns] (+)= sums over rows of a, whole vectors; `lost` is what rounding took from the total.

    A few rows are added one after the other, and their sum to the total so that nothing is lost: the error
    does not grow with the number of such additions. No flag may allow these to be put in another order.
    """
    code, lanes = Code(module), module.lanes
    together = 4 * lanes
    whole = code.sub("%columns", code.let(f"urem i64 %columns, {together}"))
    for begin, end, count in ((0, whole, 4), (whole, "%columns", 1)):
        with code.loop(begin, end, count * lanes) as column:
            places = [code.at(pointer, column.index) for pointer in ("%total", "%lost")]
            zeros = [(code.vector, code.constant(0.0))] * count
            old = [code.load(place, v * lanes) for place in places for v in range(count)]
            start = [code.select_all("%is_first", code.constant(0.0), value) for value in old]
            with code.loop(0, "%rows", TERMS, [(code.vector, value) for value in start]) as block:
                stop = code.smaller(code.add(block.index, TERMS), "%rows")
                with code.loop(block.index, stop, 1, zeros) as row:
                    line = code.at("%a", code.add(code.mul(row.index, "%lda"), column.index))
                    row.next = [
                        code.binary("fadd", value, code.load(line, v * lanes))
                        for v, value in enumerate(row.values)
                    ]
                totals, lost = block.values[:count], block.values[count:]
                added = [
                    _add_exactly(code, total, code.binary("fadd", value, rest))
                    for total, value, rest in zip(totals, row.results, lost, strict=True)
                ]
                block.next = [total for total, _ in added] + [rest for _, rest in added]
            for k, value in enumerate(block.results):
                code.store(value, places[k // count], k % count * lanes)
    arguments = ("ptr %a", "i64 %lda", "i64 %rows", "i64 %columns", "ptr %total", "ptr %lost")
    code.define("add_rows", (*arguments, "i1 %is_first"))


def _add_exactly(code: Code, a: str, b: str) -> tuple[str, str]:
    """(a + b, what its rounding took), whichever is larger; 0 was taken where the sum is not finite."""
    total = code.binary("fadd", a, b)
    of_b = code.binary("fsub", total, a)
    from_a = code.binary("fsub", a, code.binary("fsub", total, of_b))
    lost = code.binary("fadd", from_a, code.binary("fsub", b, of_b))
    return total, code.select(code.compare("ord", lost, lost), lost, code.constant(0.0))
