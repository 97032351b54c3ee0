"""Products with matrices: packing of the matrices, tiles of the result that stay in registers.

Long, because packing and tiles stand together: the order of the one is the other's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cellfuse.codegen.cpu.layout import Layout
from cellfuse.codegen.cpu.target import Target
from cellfuse.codegen.cpu.text import Code, Int, Module
from cellfuse.codegen.program import Place, Product
from cellfuse.graph.expr import Expr

ROWS = 32  # rows of a block: its results stay in the first-level cache until they are used
LONGEST = 256  # a longer sum is cut, so that the matrix's part stays in the first-level cache


@dataclass(frozen=True)
class Part:
    """A run of the sum over k whose values are side by side in memory.

    Attributes:
        place: of the operand.
        column: numbers from the place's beginning.
        start: position in the packed matrix.
        length: how many.
        is_by_head: each part of the result reads its own head.
    """

    place: Place
    column: int
    start: int
    length: int
    is_by_head: bool


@dataclass(frozen=True)
class Tiling:
    """How the product of one map is cut.

    Attributes:
        product: what is computed; its terms sorted by where their operands stand.
        axis: of the results.
        vectors: of each result in one block of columns.
        tiles: widths in vectors of the tiles that cover the block's results.
        depth: length of the sum.
        parts: of the sum.
        offset: of the product in the packed matrices.
        column: of its results in the scratch memory, in numbers.
    """

    product: Product
    axis: str
    vectors: int
    tiles: tuple[int, ...]
    depth: int
    parts: tuple[Part, ...]
    order: tuple[int, ...]
    offset: int
    column: int

    @property
    def width(self) -> int:
        """Vectors of all results in one block of columns."""
        return sum(self.tiles)


def block_vectors(layout: Layout, axis: str) -> int:
    """Vectors of each result that are computed together, a divisor of all.

    More than one: what the map reads then comes in longer runs, worth 10 % with four gates.
    """
    most = layout.target.tile_width + 1
    return max(d for d in range(1, most + 1) if layout.vectors(axis) % d == 0)


def tile(
    layout: Layout,
    axis: str,
    products: tuple[Product, ...],
    places: Mapping[Expr, Place],
    offset: int,
) -> list[Tiling]:
    """The tilings of a map's products; `offset` is where the first one's packed matrix begins."""
    made: list[Tiling] = []
    if not products:
        return made
    vectors = block_vectors(layout, axis)
    column = 0
    for product in products:
        width = vectors * len(product.results)
        count = -(-width // layout.target.tile_width)
        tiles = tuple(width // count + (k < width % count) for k in range(count))
        order = sorted(
            range(len(product.operands)), key=lambda k: _where(layout, places[product.operands[k]])
        )
        parts = _parts(layout, product, order, places)
        depth = sum(part.length for part in parts)
        made.append(Tiling(product, axis, vectors, tiles, depth, parts, tuple(order), offset, column))
        offset += layout.groups(axis) * layout.vectors(axis) * len(product.results) * layout.lanes * depth
        column += width * layout.lanes
    return made


def _where(layout: Layout, place: Place) -> tuple[str, int]:
    return place.buffer, place.column


def is_by_head(product: Product, term: int) -> bool:
    """Whether a matrix is block-diagonal."""
    return len(product.terms[0][term].matrix.shape) == 3


def _parts(
    layout: Layout, product: Product, order: list[int], places: Mapping[Expr, Place]
) -> tuple[Part, ...]:
    runs: list[list] = []  # place, column, start, length, is_by_head
    start = 0
    for k in order:
        operand = product.operands[k]
        axis, place, by_head = operand.shape[0], places[operand], is_by_head(product, k)
        units = layout.units(axis)
        for head in range(1 if by_head else layout.groups(axis)):
            column = head * layout.vectors(axis) * layout.lanes
            last = runs[-1] if runs else None
            if (
                last
                and not by_head
                and not layout.is_state(place)
                and last[0].buffer == place.buffer
                and _absolute(layout, last[0], last[1]) + last[3] == _absolute(layout, place, column)
            ):
                last[3] += units
            else:
                runs.append([place, column, start, units, by_head])
            start += units
    parts = []
    for place, column, begin, length, by_head in runs:
        pieces = -(-length // LONGEST)
        size = -(-length // pieces)
        for at in range(0, length, size):
            parts.append(Part(place, column + at, begin + at, min(size, length - at), by_head))
    return tuple(parts)


def _absolute(layout: Layout, place: Place, column: int) -> int:
    return column if layout.is_state(place) else layout.offset(place.buffer, place.column) + column


def shared_name(bits: int, target: Target, is_far: bool = False) -> str:
    """What ends the names of the functions of `emit_tiles`."""
    return f"{bits}_{target.name}_far" if is_far else f"{bits}_{target.name}"


def emit_tiles(bits: int, target: Target, is_far: bool = False) -> str:
    """The text of the functions that every kernel and the driver call: rows of tiles, and packing.

    A module of its own, because its tiles of every height take longer to compile than all the rest.
    """
    module = Module(bits, target.lanes(bits), shared=shared_name(bits, target, is_far))
    for width in range(1, target.tile_width + 1):
        for rows in range(1, target.tile_rows[width] + 1):
            _emit_tile(module, rows, width, target.tile_rows, is_far)
        _emit_rows(module, width, target.tile_rows[width])
    _emit_pack_strip(module)
    return str(module)


def call_rows(code: Code, width: int, arguments: str) -> None:
    """Call the rows of tiles of a width; see TILE."""
    name = f"rows_{width}_{code.module.shared}"
    code.module.declare(name, "void", (*(a.split()[0] for a in TILE), "i64"))
    code.do(f"call void @{name}({arguments})")


def call_pack_strip(code: Code, arguments: str) -> None:
    """Call the packing of one vector of columns."""
    name = f"pack_strip_{code.module.shared}"
    code.module.declare(name, "void", ("ptr", "i64", "i64", "ptr", "i64", "i64", "i64"))
    code.do(f"call void @{name}({arguments})")


# A tile adds to what `init` holds, at `init_step` numbers a row, and writes `out`.
TILE = ("ptr %a", "i64 %lda", "ptr %w", "i64 %k", "ptr %init", "i64 %init_step", "ptr %out", "i64 %out_step")
# Bytes of a loop's matrices from which on they come from behind the second-level cache at every step. The
# tiles then ask for the next part while they work on this one, which the processor's guesses miss.
FAR = 1 << 20


def _emit_tile(module: Module, rows: int, width: int, limits: tuple[int, ...], is_far: bool = False) -> None:
    """out[rows, width vectors] = init + a[rows, k] w[k, width vectors]."""
    code = Code(module)
    size = rows * width
    # With few sums at work each waits for the one before it: several sets are summed in turn.
    sets = 1
    while sets < 4 and size * sets < 10 and size * sets * 2 <= limits[width] * width + 4:
        sets *= 2
    unroll = max(sets, 4) if size < 12 else 1  # beside many sums the loop's own work costs nothing
    lines = [code.at("%a", code.mul("%lda", row)) for row in range(rows)]
    sums = [code.constant(0.0)] * (size * sets)

    def one(k: str, ahead: int, values: list[str]) -> None:
        base = (ahead % sets) * size
        step = code.mul(k, width * code.lanes)
        weights = [code.load(code.at("%w", step), (ahead * width + v) * code.lanes) for v in range(width)]
        for row in range(rows):
            number = code.splat(code.load_number(code.at(lines[row], k), ahead))
            for v in range(width):
                place = base + row * width + v
                values[place] = code.fma(number, weights[v], values[place])

    whole = code.let(f"and i64 %k, {-unroll}")
    following = code.at("%w", code.mul("%k", width * code.lanes)) if is_far else ""
    with code.loop(0, whole, unroll, [(code.vector, value) for value in sums]) as loop:
        values = list(loop.values)
        for ahead in range(unroll):
            one(loop.index, ahead, values)
            if is_far:
                # Each of a panel's tiles asks for a quarter of the next panel.
                step = code.add(code.mul(code.add(loop.index, ahead), code.lanes), "%part")
                code.prefetch(code.at(following, step), level=2)
        loop.next = values
    sums = loop.results
    if unroll > 1:
        with code.loop(whole, "%k", 1, [(code.vector, value) for value in sums[:size]]) as loop:
            values = list(loop.values)
            one(loop.index, 0, values)
            loop.next = values
        sums[:size] = loop.results
    while sets > 1:
        sets //= 2
        half = size * sets
        sums = [code.binary("fadd", a, b) for a, b in zip(sums[:half], sums[half:], strict=True)]
    for row in range(rows):
        start = code.at("%out", code.mul("%out_step", row))
        init = code.at("%init", code.mul("%init_step", row))
        for v in range(width):
            # Added last: a run of additions that starts at a large number has larger errors.
            total = code.binary("fadd", sums[row * width + v], code.load(init, v * code.lanes))
            code.store(total, start, v * code.lanes)
    code.define(f"tile_{rows}x{width}", (*TILE, "i64 %part"))
    body = module.functions[f"tile_{rows}x{width}"]
    module.functions[f"tile_{rows}x{width}"] = body.replace("nounwind", "nounwind noinline", 1)


def _emit_rows(module: Module, width: int, limit: int) -> None:
    """Any number of rows, in tiles of nearly the same height."""
    code = Code(module)

    def tiles(height: str, a: str, init: str, out: str, part: Int) -> None:
        for rows in code.switch(height, range(1, limit + 1)):
            code.do(
                f"call void @tile_{rows}x{width}(ptr {a}, i64 %lda, ptr %w, i64 %k, "
                f"ptr {init}, i64 %init_step, ptr {out}, i64 %out_step, i64 {part})"
            )

    # Few rows are frequent, and a division costs as much as a small tile.
    is_one = code.let(f"icmp sle i64 %rows, {limit}")
    tiles(code.let(f"select i1 {is_one}, i64 %rows, i64 0"), "%a", "%init", "%out", 0)
    with code.where(code.let(f"xor i1 {is_one}, true")):
        count = code.let(f"udiv i64 {code.add('%rows', limit - 1)}, {limit}")
        base, more = code.let(f"udiv i64 %rows, {count}"), code.let(f"urem i64 %rows, {count}")
        with code.loop(0, count, 1, [("i64", "0")]) as loop:
            row = loop.values[0]
            is_high = code.let(f"icmp slt i64 {loop.index}, {more}")
            height = str(code.add(base, code.let(f"zext i1 {is_high} to i64")))
            a = code.at("%a", code.mul(row, "%lda"))
            init = code.at("%init", code.mul(row, "%init_step"))
            part = code.mul(loop.index, code.mul("%k", code.lanes))
            tiles(height, a, init, code.at("%out", code.mul(row, "%out_step")), part)
            loop.next = [str(code.add(row, height))]
    code.define(f"rows_{width}_{module.shared}", (*TILE, "i64 %rows"), "")


def emit_product(
    code: Code,
    tiling: Tiling,
    block: str,
    rows: Int,
    operands: Mapping[Part, tuple[str, Int]],
    weights: str,
    scratch: str,
    scratch_step: int,
) -> None:
    """The results of one block of columns for some rows, to the scratch memory.

    Args:
        block: number of the block of columns.
        operands: address of the first row, and numbers between rows, of each part.
        weights: the packed matrices.
    """
    lanes = code.lanes
    panel = code.at(weights, code.add(tiling.offset, code.mul(block, tiling.width * lanes * tiling.depth)))
    before = 0
    for width in tiling.tiles:
        matrix = code.at(panel, before * lanes * tiling.depth)
        out = code.at(scratch, tiling.column + before * lanes)
        init, init_step = "@zeros", 0
        for part in tiling.parts:
            a, lda = operands[part]
            w = code.at(matrix, part.start * width * lanes)
            call_rows(
                code,
                width,
                f"ptr {a}, i64 {lda}, ptr {w}, i64 {part.length}, ptr {init}, i64 {init_step}, ptr {out}, "
                f"i64 {scratch_step}, i64 {rows}",
            )
            init, init_step = out, scratch_step
        before += width


def emit_pack(module: Module, layout: Layout, name: str, tilings: list[Tiling]) -> None:
    """The function that packs the matrices of one loop: [block][tile][k][vector of the tile]."""
    code = Code(module)
    for tiling in tilings:
        for call in _strips(code, layout, tiling, name):
            call_pack_strip(code, call)
    code.define(f"pack_{name}", ("ptr %slots",), "")


def _strips(code: Code, layout: Layout, tiling: Tiling, name: str) -> Iterator[str]:
    """Arguments of `pack_strip` for every vector of columns of every matrix."""
    lanes, axis, product = layout.lanes, tiling.axis, tiling.product
    weights = code.slot("%slots", layout.slots[f"{name}_weights"], "ptr")
    per_group = layout.vectors(axis) // tiling.vectors
    starts = _term_starts(layout, tiling)
    with code.loop(0, layout.groups(axis)) as group, code.loop(0, per_group) as inner:
        block = code.add(code.mul(group.index, per_group), inner.index)
        panel = code.at(
            weights, code.add(tiling.offset, code.mul(block, tiling.width * lanes * tiling.depth))
        )
        for v in range(tiling.vectors):
            first = code.mul(code.add(code.mul(inner.index, tiling.vectors), v), lanes)
            valid = code.smaller(code.sub(layout.units(axis), first), lanes)
            for s, terms in enumerate(product.terms):
                tile_start, width, within = _tile_of(tiling, s * tiling.vectors + v)
                for k in tiling.order:
                    term = terms[k]
                    matrix = code.slot("%slots", layout.slots[term.matrix.label], "ptr")
                    for head, start in enumerate(starts[k]):
                        place = within_matrix(code, layout, term, axis, group.index, first, head)
                        source, by_unit, by_k, length = place
                        target = code.at(panel, (tile_start * tiling.depth + start * width + within) * lanes)
                        yield (
                            f"ptr {code.at(matrix, source)}, i64 {by_unit}, i64 {by_k}, ptr {target}, "
                            f"i64 {width * lanes}, i64 {length}, i64 {valid}"
                        )
        group.next, inner.next = [], []


def _term_starts(layout: Layout, tiling: Tiling) -> dict[int, list[int]]:
    """Where each term's values begin in the sum; one for each head it reads."""
    starts: dict[int, list[int]] = {}
    at = 0
    for k in tiling.order:
        axis = tiling.product.operands[k].shape[0]
        count = 1 if is_by_head(tiling.product, k) else layout.groups(axis)
        starts[k] = [at + head * layout.units(axis) for head in range(count)]
        at += count * layout.units(axis)
    return starts


def _tile_of(tiling: Tiling, vector: int) -> tuple[int, int, int]:
    """(vectors before the tile, its width, position inside it) of a vector of the block."""
    before = 0
    for width in tiling.tiles:
        if vector < before + width:
            return before, width, vector - before
        before += width
    raise AssertionError("a vector outside of the tiles")


def within_matrix(code: Code, layout: Layout, term, axis: str, group: str, first: Int, head: int):  # type: ignore[no-untyped-def]
    """(offset of the first number, step from unit to unit, step along k, length) in the user's matrix."""
    operand_axis = term.operand.shape[0]
    length = layout.units(operand_axis)
    if len(term.matrix.shape) == 3:  # [N, K, K]: a head reads itself
        base = code.mul(group, length * length)
        steps = (1, length) if term.is_transposed else (length, 1)
        return code.add(base, code.mul(first, steps[0])), *steps, length
    unit = code.add(code.mul(group, layout.units(axis)), first)
    if term.is_transposed:  # [operand, result]
        across = layout.groups(axis) * layout.units(axis)
        return code.add(unit, head * length * across), 1, across, length
    across = layout.groups(operand_axis) * length
    return code.add(code.mul(unit, across), head * length), across, 1, length


def _emit_pack_strip(module: Module) -> None:
    """out[k, lane] = a[lane * by_unit + k * by_k] for `valid` lanes, 0 in the others."""
    code = Code(module)
    lanes = code.lanes
    is_full = code.let(f"icmp eq i64 %valid, {lanes}")
    is_row = code.let("icmp eq i64 %by_unit, 1")
    is_column = code.let("icmp eq i64 %by_k, 1")
    rows = code.let(f"select i1 {code.let(f'and i1 {is_full}, {is_row}')}, i64 %length, i64 0")
    with code.loop(0, rows) as loop:
        value = code.load(code.at("%a", code.mul(loop.index, "%by_k")))
        code.store(value, code.at("%out", code.mul(loop.index, "%step")))
    whole = code.let(f"and i64 %length, {-lanes}")
    whole = code.let(f"select i1 {code.let(f'and i1 {is_full}, {is_column}')}, i64 {whole}, i64 {rows}")
    # Already copied rows are not turned again.
    with code.loop(rows, whole, lanes) as loop:
        start = code.at("%a", loop.index)
        square = [code.load(code.at(start, code.mul("%by_unit", lane))) for lane in range(lanes)]
        out = code.at("%out", code.mul(loop.index, "%step"))
        for k, value in enumerate(_transposed(code, square)):
            code.store(value, code.at(out, code.mul("%step", k)))
    with code.loop(whole, "%length") as loop:
        start = code.at("%a", code.mul(loop.index, "%by_k"))
        out = code.at("%out", code.mul(loop.index, "%step"))
        code.store(code.constant(0.0), out)
        with code.loop(0, "%valid") as lane:
            number = code.load_number(code.at(start, code.mul(lane.index, "%by_unit")))
            code.store_number(number, code.at(out, lane.index))
    arguments = ("ptr %a", "i64 %by_unit", "i64 %by_k", "ptr %out", "i64 %step", "i64 %length", "i64 %valid")
    code.define(f"pack_strip_{module.shared}", arguments, "")


def _transposed(code: Code, square: list[str]) -> list[str]:
    """As many vectors as there are lanes, with rows and columns exchanged."""
    lanes = code.lanes
    step = lanes // 2
    while step:
        new = list(square)
        for i in range(lanes):
            if not i & step:
                low = [lane if not lane & step else lanes + (lane ^ step) for lane in range(lanes)]
                high = [(lane | step) if not lane & step else lanes + lane for lane in range(lanes)]
                new[i] = code.shuffle(square[i], square[i | step], low)
                new[i | step] = code.shuffle(square[i], square[i | step], high)
        square, step = new, step // 2
    return square
