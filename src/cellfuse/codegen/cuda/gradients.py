"""The backward step of a cell as device functions: factors, and what is linear in the incoming gradients.

Every gradient of a step is a sum of incoming gradients, each times a factor that they have no part in. See
`step` for the two functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cellfuse.codegen.cuda.spell import literal
from cellfuse.codegen.cuda.writer import ROWS, Writer
from cellfuse.codegen.program import Loop, Place, Program, arguments
from cellfuse.graph.expr import Expr, constant, node, order

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


class Backward:
    """The backward step: nodes sorted into factors and what is linear in gradients.

    Attributes:
        text: of both functions.
        factors: the number of each factor.
        loads, written, accumulated, recurrent: as `Step` has them.
    """

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
            expr: f"{ROWS[place.buffer]}[{place.column}]"
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
        writer = Writer(fixed | {expr: f"v[{k}]" for k, expr in enumerate(read)}, self.hidden)
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
