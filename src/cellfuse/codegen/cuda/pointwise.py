"""Program -> what one time step launches: products, which a library makes, and kernels for the rest.

For every cell, size and number format. What one kernel does to a row never depends on another row, so that
stages without a product share one. Kernels know no time: they are given the rows of the time step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cellfuse.codegen.cpu.layout import Layout
from cellfuse.codegen.cuda.formats import MEMORY, NUMBERS, STORED
from cellfuse.codegen.cuda.kernel import CudaKernel, Parameter
from cellfuse.codegen.cuda.launches import Launch, Multiplication, Pointwise, groups
from cellfuse.codegen.cuda.spell import PRELUDE, literal, spell
from cellfuse.codegen.program import Loop, Map, Place, Product, Stage, arguments
from cellfuse.codegen.schedule import REDUCTIONS
from cellfuse.graph.expr import Expr

LOOPS = ("infer", "forward", "backward")
# Buffers with a row per time step whose values may be stored in 16 bits; states and sums never are.
LARGE = ("products", "kept", "output", "output_gradient", "gradients")


def is_stored(buffer: str) -> bool:
    """Whether a buffer's values are stored in the layer's format, masks as they are drawn."""
    return buffer in LARGE or buffer.startswith("mask_")


def name_of(place: Place) -> str:
    """The parameter that points to a place's buffer; every state has its own."""
    is_state = place.buffer in ("before", "after")
    return f"{place.buffer}_{place.column}" if is_state else place.buffer


def pointwise(layout: Layout, dtype: str, loops: tuple[str, ...] = LOOPS) -> Pointwise:
    """The kernels of a program's loops.

    Args:
        layout: without padding, see `layout.cuda_layout`.
        dtype: a name in NUMBERS: how large buffers are stored.
    """
    return _Text(layout, dtype).made(loops)


class _Text:
    def __init__(self, layout: Layout, dtype: str) -> None:
        self.layout, self.number, self.stored = layout, NUMBERS[dtype], STORED[dtype]
        wide = max(layout.sizes.hidden, layout.sizes.projected)
        self.threads = 32
        while self.threads < min(wide, 256):
            self.threads *= 2
        self.gathered: dict[Expr, int] = {}
        self.most_results = 0
        self.shared = self.threads  # numbers of shared memory; a scan has doubles

    def made(self, loops: tuple[str, ...]) -> Pointwise:
        launches, results, bodies = {}, {}, []
        for name in loops:
            made = _LoopText(self, name, getattr(self.layout.program, name))
            launches[name], results[name] = tuple(made.launches), tuple(made.results)
            bodies += made.bodies
            self.most_results = max(self.most_results, len(made.results))
        parameters = self._parameters()
        given = ", ".join(f"{kind} {name}" for name, kind in parameters)
        # One block at least: without the number the assembler spills a few registers so that more blocks fit.
        bound = f"__launch_bounds__({self.threads}, 1)"
        heads = [
            f'extern "C" __global__ void {bound} {entry}({given}) {{\n{body}\n}}' for entry, body in bodies
        ]
        kernel = CudaKernel(
            text="\n".join((PRELUDE, MEMORY, *heads)),
            entries=tuple(entry for entry, _ in bodies),
            parameters=tuple(
                Parameter(name, "pointer" if kind.endswith("*") else "int64") for name, kind in parameters
            ),
            threads=self.threads,
            shared_bytes=self.shared * 8,
        )
        return Pointwise(kernel, launches, results, len(self.gathered))

    def _parameters(self) -> list[tuple[str, str]]:
        program, number = self.layout.program, self.number
        made = [("rows", "long long")]
        for name in program.buffers:
            if name != "states":
                made.append((name, f"{self.stored if is_stored(name) else number}*"))
        for column in range(len(program.buffers["states"].columns)):
            made += [(f"before_{column}", f"{number}*"), (f"after_{column}", f"{number}*")]
        made += [(f"results_{k}", f"{self.stored}*") for k in range(self.most_results)]
        return [*made, ("gathered", f"{number}*")]


class _LoopText:
    """The entries of one loop."""

    def __init__(self, text: _Text, name: str, loop: Loop) -> None:
        self.text, self.layout, self.loop = text, text.layout, loop
        self.launches: list[Launch] = []
        self.results: list[int] = []
        self.bodies: list[tuple[str, str]] = []
        # Where the kernel finds each result of a product: (parameter, multiplication, which of its results)
        self.made: dict[Expr, list[tuple[int, Multiplication, int]]] = {}
        for group in groups(loop.stages):
            products = self._multiplications(group[0])
            entry = f"{name}_{len(self.launches)}"
            units = self._units(group)
            body = self._by_unit(group[0], units) if units else self._by_row(group)
            self.bodies.append((entry, body))
            self.launches.append(Launch(products, entry, units))

    def _units(self, group: list[Stage]) -> int:
        """Threads for each row if units do not work together, else 0."""
        stage = group[0]
        together = len(group) > 1 or stage.scans or stage.numbers or stage.stores
        if together or any(each.reductions for each in stage.maps):
            return 0
        return max((self.layout.width((each.axis,)) for each in stage.maps), default=1)

    # products

    def _multiplications(self, stage: Stage) -> tuple[Multiplication, ...]:
        made: list[Multiplication] = []
        for each in stage.maps:
            for product in each.products:
                for columns in self._runs(product):
                    terms = [[result[c] for result in product.terms] for c in columns]
                    blocks = tuple(
                        tuple((term.matrix.label, term.is_transposed) for term in row) for row in terms
                    )
                    by_head = len(terms[0][0].matrix.shape) == 3
                    one = Multiplication(
                        self.loop.places[product.operands[columns[0]]], blocks, each.axis, by_head
                    )
                    for r, result in enumerate(product.results):
                        self.made.setdefault(result, []).append((len(made), one, r))
                    made.append(one)
        for k, one in enumerate(made):
            wide = one.results * self.layout.width((one.axis,))
            if k == len(self.results):
                self.results.append(0)
            self.results[k] = max(self.results[k], wide)
        return tuple(made)

    def _runs(self, product: Product) -> Iterator[list[int]]:
        """The operands whose columns are neighbours in memory, as one wide operand each."""
        run: list[int] = []
        places = [self.loop.places[operand] for operand in product.operands]
        order = sorted(range(len(places)), key=lambda c: (places[c].buffer, places[c].column))
        for c in order:
            place = places[c]
            if run:
                last = places[run[-1]]
                is_dense = all(
                    len(terms[k].matrix.shape) == 2 for terms in product.terms for k in (run[-1], c)
                )
                is_next = (last.buffer, last.column + 1) == (place.buffer, place.column)
                if not (is_dense and is_next and place.buffer not in ("before", "after")):
                    yield run
                    run = []
            run.append(c)
        yield run

    # addresses

    def _address(self, place: Place, unit: str) -> str:
        name, layout = name_of(place), self.layout
        if layout.is_state(place):
            width = layout.width(layout.program.buffers["states"].columns[place.column])
            return f"{name} + (row * {width} + {unit})"
        offset = layout.offset(place.buffer, place.column)
        if layout.program.buffers[place.buffer].rows == "once":
            return f"{name} + ({offset} + {unit})"
        return f"{name} + (row * {layout.strides[place.buffer]} + {offset} + {unit})"

    def _result(self, expr: Expr) -> str:
        """The sum of what was made for a result of a product."""
        parts = []
        for k, one, r in self.made[expr]:
            width = self.layout.width((one.axis,))
            if one.is_by_head:
                units = width // self.layout.sizes.heads
                at = f"((unit / {units}) * rows + row) * {one.results * units} + {r * units} + unit % {units}"
            else:
                at = f"row * {one.results * width} + {r * width} + unit"
            parts.append(f"cf_load(results_{k} + ({at}))")
        return " + ".join(parts)

    # kernels

    def _by_unit(self, stage: Stage, units: int) -> str:
        """One thread for one unit of one row."""
        lines = [f"const unsigned int index = blockIdx.x * {self.text.threads}u + threadIdx.x;"]
        for each in stage.maps:
            width = self.layout.width((each.axis,))
            lines += [
                f"if (index < rows * {width}) {{",
                f"const long long row = index / {width}u;",
                f"const int unit = index % {width}u;",
                *_Values(self).map(each)[0],
                "}",
            ]
        return "\n".join(lines)

    def _by_row(self, group: list[Stage]) -> str:
        """One block for one row."""
        number = self.text.number
        lines = [f"{number}* shared = ({number}*)shared_memory();", "const long long row = blockIdx.x;"]
        for stage in group:
            for expr, place in stage.scans:
                lines += self._scan(expr, place)
            if stage.numbers or stage.stores:
                lines += ["if (threadIdx.x == 0) {", *self._numbers(stage), "}", "__syncthreads();"]
            for each in stage.maps:
                lines += self._map(each)
        return "\n".join(lines)

    def _numbers(self, stage: Stage) -> list[str]:
        values = _Values(self)
        for expr in stage.numbers:
            if expr.op in REDUCTIONS:
                column = self.text.gathered.setdefault(expr, len(self.text.gathered))
                values.let(expr, f"cf_load(gathered + (rows * {column} + row))")
            else:
                values.compute(expr)
        for expr, place in stage.stores:
            values.store(expr, place)
        return [*values.lines, *values.stores]

    def _map(self, each: Map) -> list[str]:
        number, threads = self.text.number, self.text.threads
        inner, gathered = _Values(self).map(each)
        lines = []
        for k, (expr, _) in enumerate(gathered):
            start = "cf_float_of_bits(0xff800000u)" if expr.op == "amax" else "0"
            lines.append(f"{number} part_{k} = ({number}){start};")
        lines.append(
            f"for (int unit = threadIdx.x; unit < {self.layout.width((each.axis,))}; unit += {threads}) {{"
        )
        lines += inner
        for k, (expr, value) in enumerate(gathered):
            lines.append(f"part_{k} = {_join(expr.op, f'part_{k}', value)};")
        lines.append("}")
        lines += self._joined([expr for expr, _ in gathered])
        return ["{", *lines, "}", "__syncthreads();"]

    def _joined(self, gathered: list[Expr]) -> list[str]:
        """Every thread's part of each sum or maximum joined in a tree, the same at every run."""
        if not gathered:
            return []
        threads = self.text.threads
        self.text.shared = max(self.text.shared, threads * len(gathered))
        at = [f"shared[{k * threads} + threadIdx.x" for k in range(len(gathered))]
        joins = [
            f"{left}] = {_join(expr.op, left + ']', left + ' + half]')};"
            for expr, left in zip(gathered, at, strict=True)
        ]
        columns = [self.text.gathered.setdefault(expr, len(self.text.gathered)) for expr in gathered]
        return [
            *(f"{left}] = part_{k};" for k, left in enumerate(at)),
            "__syncthreads();",
            f"for (int half = {threads // 2}; half > 0; half /= 2) {{",
            "if (threadIdx.x < half) {",
            *joins,
            "}",
            "__syncthreads();",
            "}",
            "if (threadIdx.x == 0) {",
            *(
                f"cf_store(gathered + (rows * {column} + row), shared[{k * threads}]);"
                for k, column in enumerate(columns)
            ),
            "}",
        ]

    def _scan(self, expr: Expr, place: Place) -> list[str]:
        """Running sums: each thread sums its part, one thread the parts, each goes on from there."""
        threads, width = self.text.threads, self.layout.width(expr.shape)
        unit = f"({width - 1} - k)" if expr.op == "cumsum_reversed" else "k"
        source = f"cf_load({self._address(self.loop.places[expr.args[0]], unit)})"
        each = -(-width // threads)
        return [
            "{",
            "double* sums = (double*)shared_memory();",
            f"const int first = threadIdx.x * {each};",
            f"const int last = first + {each} < {width} ? first + {each} : {width};",
            "double sum = 0;",
            f"for (int k = first; k < last; k++) sum += {source};",
            "sums[threadIdx.x] = sum;",
            "__syncthreads();",
            "if (threadIdx.x == 0) {",
            "double before = 0;",
            "#pragma unroll 8",  # all of it at once needs more registers than there are
            f"for (int k = 0; k < {threads}; k++) {{",
            "const double next = before + sums[k];",
            "sums[k] = before;",
            "before = next;",
            "}",
            "}",
            "__syncthreads();",
            "sum = sums[threadIdx.x];",
            "for (int k = first; k < last; k++) {",
            f"sum += {source};",
            f"cf_store({self._address(place, unit)}, ({self.text.number})sum);",
            "}",
            "}",
            "__syncthreads();",
        ]


def _join(op: str, left: str, right: str) -> str:
    joins: dict[str, Callable[[str, str], str]] = {
        "sum": lambda a, b: f"{a} + {b}",
        "amax": lambda a, b: f"cf_max({a}, {b})",
    }
    return joins[op](left, right)


class _Values:
    """The values of one unit of one row, or of one row's numbers, as C++ names."""

    def __init__(self, text: _LoopText) -> None:
        self.text = text
        self.names: dict[Expr, str] = {}
        self.lines: list[str] = []
        self.stores: list[str] = []

    def map(self, each: Map) -> tuple[list[str], list[tuple[Expr, str]]]:
        """The lines of a map's body; for each reduction the value of this unit."""
        for product in each.products:
            for result in product.results:
                self.let(result, self.text._result(result))
        for expr in each.nodes:
            self.compute(expr)
        gathered = [(expr, self.get(expr.args[0])) for expr in each.reductions]
        for expr, place in each.stores:
            self.store(expr, place)
        return [*self.lines, *self.stores], gathered

    def let(self, expr: Expr, value: str) -> str:
        """Name the value of a node."""
        kind = "bool" if expr.is_truth else self.text.text.number
        self.names[expr] = f"v{len(self.names)}"
        self.lines.append(f"const {kind} {self.names[expr]} = {value};")
        return self.names[expr]

    def get(self, expr: Expr) -> str:
        """The name of a node's value, which is read from memory if nothing here computes it."""
        if expr.op == "constant":
            return literal(expr.value, self.text.text.number)
        if expr.op == "size":
            return literal(float(self.text.layout.width((expr.label,))), self.text.text.number)
        if expr in self.names:
            return self.names[expr]
        unit = "unit" if expr.shape else "0"
        read = f"cf_load({self.text._address(self.text.loop.places[expr], unit)})"
        return self.let(expr, f"{read} != 0" if expr.is_truth else read)

    def compute(self, expr: Expr) -> None:
        """An operation on values."""
        self.let(expr, spell(expr.op, *(self.get(arg) for arg in arguments(expr))))

    def store(self, expr: Expr, place: Place) -> None:
        """Write a value, after everything was read."""
        value = self.get(expr)
        number = self.text.text.number
        value = f"({number})({value} ? 1 : 0)" if expr.is_truth else value
        self.stores.append(f"cf_store({self.text._address(place, 'unit' if expr.shape else '0')}, {value});")
