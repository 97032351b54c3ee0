"""One time step of a cell as device functions, for kernels that run the whole loop over time.

The backward step is split: `cell_factors` computes everything that no incoming gradient is needed for,
`cell_gradients` is what is left, linear in the gradients and a few multiplications deep. Only the
second is on the way from one time step to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cellfuse.codegen.cuda.spell import SPELL, literal, spell
from cellfuse.codegen.program import Loop, Place, Program, arguments
from cellfuse.graph.expr import Expr, constant, node, order


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
    backward = _Backward(program, state, matrices, hidden)
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


class _Writer:
    """Writes nodes as lines of C++, each value once."""

    def __init__(self, names: Mapping[Expr, str], hidden: int) -> None:
        self.names, self.hidden, self.lines = dict(names), hidden, list[str]()

    def value(self, expr: Expr) -> str:
        """The name of a node's value; writes whatever it needs and is not written yet."""
        stack = [expr]
        while stack:
            inner = stack[-1]
            missing = [arg for arg in arguments(inner) if arg not in self.names]
            if inner in self.names or not missing:
                stack.pop()
                if inner not in self.names:
                    self.names[inner] = self._write(inner)
            else:
                stack.extend(reversed(missing))
        return self.names[expr]

    def _write(self, expr: Expr) -> str:
        if expr.op == "constant":
            return literal(expr.value, "float")
        if expr.op == "size":
            return literal(float(self.hidden), "float")
        if expr.is_leaf:
            raise ValueError(f"{expr.label} is read, but is in no buffer")
        if expr.op not in SPELL:
            raise ValueError(f"{expr.op} is no operation on one unit")
        text = spell(expr.op, *(self.names[arg] for arg in arguments(expr)))
        if expr.op in ("expand", "detach"):
            return text
        name = f"t{len(self.lines)}"
        self.lines.append(f"  const {'bool' if expr.is_truth else 'float'} {name} = {text};")
        return name


# name of a function's argument -> the buffer it is a row of
_ROWS = {"before": "s", "products": "x", "parameters": "p", "constants": "c"}


def _forward(name: str, loop: Loop, program: Program, made: Mapping[Expr, str], hidden: int) -> str:
    """The function of the forward step; `keep` also gives what the backward step reads."""
    names = dict(made)
    for expr, place in loop.places.items():
        if place.buffer in _ROWS:
            names.setdefault(expr, f"{_ROWS[place.buffer]}[{place.column}]")
    writer = _Writer(names, hidden)
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


def _number(writer: _Writer, expr: Expr) -> str:
    text = writer.value(expr)
    return f"({text} ? 1.0f : 0.0f)" if expr.is_truth else text


_ONE = constant(1.0)
# A value that is linear in gradients: base -> factor. A base is a leaf or a node with a name of its own.
Form = dict[Expr, Expr]


def _times(a: Expr, b: Expr) -> Expr:
    if a is _ONE:
        return b
    return a if b is _ONE else node("mul", a, b)


def _minus(a: Expr) -> Expr:
    return a.args[0] if a.op == "neg" else node("neg", a)


def _plus(a: Expr, b: Expr) -> Expr:
    return node("sub", a, b.args[0]) if b.op == "neg" else node("add", a, b)


class _Backward:
    """The backward step: nodes sorted into factors and what is linear in gradients."""

    def __init__(self, program: Program, state: int, matrices: tuple[str, ...], hidden: int) -> None:
        self.program, self.hidden = program, hidden
        loop = program.backward
        stores = _stores(loop)
        products = [p for stage in loop.stages for each in stage.maps for p in each.products]
        self.product = products[0].results[0] if products else None
        self._sort(stores)
        outer = {place: sum.label for sum in program.sums if sum.kind != "rows" for place in sum.left}
        by_place = {place: expr for expr, place in stores}
        inputs = len(program.inputs)
        places = sorted(by_place, key=lambda place: (place.buffer, place.column))
        wide = [place for place in places if place.buffer == "gradients"]
        self.written = tuple(p.column for p in wide if p.column < inputs or p in outer)
        self.accumulated = tuple(
            place
            for place in places
            if place.buffer in ("gradients", "gradient_numbers")
            and not (place.buffer == "gradients" and place.column in self.written)
        )
        left = {sum.label: sum.left for sum in program.sums if sum.kind != "rows"}
        self.recurrent = tuple(self.written.index(left[label][0].column) for label in matrices)
        if products:
            self._check_product(products[0].terms[0], matrices, by_place)
        self.forms: dict[Expr, Form] = {}
        self.factors: dict[Expr, int] = {}
        self.bases: dict[Expr, Form] = {}
        results = [by_place[Place("carry", k)] for k in range(len(program.step.of_role("state")))]
        results += [by_place[Place("gradients", column)] for column in self.written]
        results += [by_place[place] for place in self.accumulated]
        forms = [self._form(expr) for expr in results]
        if state >= 0:
            if self.product is None or forms[state].pop(self.product, None) is not _ONE:
                raise ValueError("the transposed product is not added as it is to the state's gradient")
        if any(self.product in form for form in forms if self.product is not None):
            raise ValueError("a gradient in the step needs the transposed product of the same step")
        names = [f"carry[{k}]" for k in range(len(program.step.of_role("state")))]
        names += [f"gradient[{k}]" for k in range(len(self.written))]
        names += [f"total[{k}]" for k in range(len(self.accumulated))]
        self._write(loop, names, forms)

    def _sort(self, stores: list[tuple[Expr, Place]]) -> None:
        """Find the nodes that depend on an incoming gradient."""
        self.flows: set[Expr] = set()
        for expr in order([expr for expr, _ in stores]):
            if expr.role == "gradient" or any(arg in self.flows for arg in arguments(expr)):
                self.flows.add(expr)

    def _check_product(self, terms: tuple, matrices: tuple[str, ...], by_place: Mapping[Place, Expr]) -> None:
        columns = {
            label: by_place[Place("gradients", self.written[k])]
            for label, k in zip(matrices, self.recurrent, strict=True)
        }
        given = {term.matrix.label: term.operand for term in terms}
        if given != columns or not all(term.is_transposed for term in terms):
            raise ValueError("the transposed products are not those of the forward step")

    def _form(self, expr: Expr) -> Form:
        """The value as a sum of factors times bases."""
        if expr not in self.flows:
            if (expr.args[0] if expr.op == "expand" else expr) is constant(0.0):
                return {}
            raise ValueError(f"a gradient that is {expr!r} whatever comes in")
        stack = [expr]
        while stack:
            inner = stack[-1]
            below = () if inner is self.product else arguments(inner)
            missing = [arg for arg in below if arg in self.flows and arg not in self.forms]
            stack.extend(missing)
            if not missing:
                stack.pop()
                if inner not in self.forms:
                    self.forms[inner] = self._combine(inner)
        return dict(self.forms[expr])

    def _combine(self, expr: Expr) -> Form:
        if expr.role == "gradient" or expr is self.product:
            return {expr: _ONE}
        args = arguments(expr)
        forms = [self.forms.get(arg) for arg in args]
        if expr.op in ("expand", "detach", "sum"):  # a sum over units is left to the end
            return dict(self.forms[args[0]])
        if expr.op == "neg":
            return {base: _minus(factor) for base, factor in self.forms[args[0]].items()}
        if expr.op == "mul":
            ((form, factor),) = [(f, a) for f, a in zip(forms, reversed(args), strict=True) if f is not None]
            return {base: _times(own, factor) for base, own in form.items()}
        if expr.op == "div" and forms[1] is None and forms[0] is not None:
            return {base: node("div", own, args[1]) for base, own in forms[0].items()}
        if expr.op == "where" and forms[0] is None:
            zero = constant(0.0)
            one, other = (self._form(arg) for arg in args[1:])
            return {
                base: node("where", args[0], one.get(base, zero), other.get(base, zero))
                for base in dict.fromkeys((*one, *other))
            }
        if expr.op in ("add", "sub"):
            form, right = (self._form(arg) for arg in args)
            for base, factor in right.items():
                factor = _minus(factor) if expr.op == "sub" else factor
                form[base] = _plus(form[base], factor) if base in form else factor
            return self._as_base(expr, form)
        raise ValueError(f"{expr.op} of a gradient is not linear")

    def _as_base(self, expr: Expr, form: Form) -> Form:
        """A sum of several bases gets a name, so that what follows is one multiplication deep."""
        if len(form) < 2 or self.product in form:
            return form
        self.bases[expr] = form
        return {expr: _ONE}

    def _write(self, loop: Loop, names: list[str], forms: list[Form]) -> None:
        fixed = {
            expr: f"{_ROWS[place.buffer]}[{place.column}]"
            for expr, place in loop.places.items()
            if place.buffer in ("parameters", "constants")
        }
        incoming = {
            expr: f"g[{place.column + 1}]" if place.buffer == "carry" else "g[0]"
            for expr, place in loop.places.items()
            if place.buffer in ("carry", "output_gradient")
        }
        lines: list[str] = []
        base_names = dict(incoming)
        used = _used_bases(forms, self.bases)
        for number, base in enumerate(base for base in self.bases if base in used):
            base_names[base] = f"b{number}"
            lines.append(f"  const float b{number} = {self._sum(self.bases[base], base_names, fixed)};")
        for name, form in zip(names, forms, strict=True):
            add = "+=" if name.startswith("total") else "="
            lines.append(f"  {name} {add} {self._sum(form, base_names, fixed)};")
        read = _reads(self.factors, loop, fixed)
        self.loads = tuple(read.values())
        writer = _Writer(fixed | {expr: f"v[{k}]" for k, expr in enumerate(read)}, self.hidden)
        factors = [f"  k[{n}] = {writer.value(expr)};" for expr, n in self.factors.items()]
        self.text = "\n".join(
            (
                "DEV void cell_factors(const float* v, const float* p, const float* c, float* k) {",
                *writer.lines,
                *factors,
                "}",
                "DEV void cell_gradients(const float* k, const float* g, const float* p, const float* c, "
                "float* carry, float* gradient, float* total) {",
                *lines,
                "}",
            )
        )

    def _sum(self, form: Form, base_names: Mapping[Expr, str], fixed: Mapping[Expr, str]) -> str:
        return (
            " + ".join(self._term(base_names[base], factor, fixed) for base, factor in form.items()) or "0.0f"
        )

    def _term(self, base: str, factor: Expr, fixed: Mapping[Expr, str]) -> str:
        if factor is _ONE:
            return base
        if factor.op == "neg" and factor.args[0] is _ONE:
            return f"(-{base})"
        if factor.op == "constant":
            return f"{base} * {literal(factor.value, 'float')}"
        if factor in fixed:
            return f"{base} * {fixed[factor]}"
        return f"{base} * k[{self.factors.setdefault(factor, len(self.factors))}]"


def _stores(loop: Loop) -> list[tuple[Expr, Place]]:
    found: list[tuple[Expr, Place]] = []
    for stage in loop.stages:
        found += stage.stores
        for each in stage.maps:
            found += each.stores
    return [
        (expr, place)
        for expr, place in found
        if not place.buffer.endswith(("_temp", "_numbers")) or place.buffer == "gradient_numbers"
    ]


def _used_bases(forms: Iterable[Form], bases: Mapping[Expr, Form]) -> set[Expr]:
    used: set[Expr] = set()
    left = [base for form in forms for base in form]
    while left:
        base = left.pop()
        if base not in used:
            used.add(base)
            left += bases.get(base, {})
    return used


def _reads(factors: Iterable[Expr], loop: Loop, fixed: Mapping[Expr, str]) -> dict[Expr, Place]:
    """What the factors need from memory, nodes that are in memory taken from there."""
    found: dict[Expr, Place] = {}
    seen: set[Expr] = set()
    left = list(factors)
    while left:
        expr = left.pop()
        if expr in seen or expr in fixed or expr.op in ("constant", "size"):
            continue
        seen.add(expr)
        place = loop.places.get(expr)
        if place is not None and not place.buffer.endswith(("_temp", "_numbers")):
            found[expr] = place
        else:
            left += arguments(expr)
    return dict(sorted(found.items(), key=lambda item: (item[1].buffer, item[1].column)))
