"""Expr: one node of a graph. Immutable; two nodes that say the same are the same object."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass

from cellfuse.errors import TraceError
from cellfuse.graph.ops import OPS, Shape

ROLES = (
    "input product",  # gate.k.x = W_k x + b_k, made for all time steps before the loop
    "state",
    "matrix",  # R_k of gate.k.h and gate.k.of(v), or the projection
    "diagonal",  # R_k of a diagonal recurrence: one weight per unit
    "bias",  # added to the recurrent product
    "parameter",
    "gradient",  # a gradient that comes in from outside
    "mask",  # drawn anew for each time step, from outside
    "lasting mask",  # drawn once and the same at every time step
)


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Expr:
    """One node: an operation on other nodes, or a leaf.

    Attributes:
        op: a name in `ops.OPS`, or "input", "constant", "size" (the number of units of an axis).
        args: the nodes it works on.
        shape: axis letters of the value, see `ops`.
        label: name of an input; axis letter of a size.
        role: what an input is, one of ROLES.
        value: the number of a constant.
    """

    op: str
    args: tuple[Expr, ...] = ()
    shape: Shape = ()
    label: str = ""
    role: str = ""
    value: float = 0.0

    def __add__(self, other: Expr | float) -> Expr:
        return node("add", self, other)

    def __sub__(self, other: Expr | float) -> Expr:
        return node("sub", self, other)

    def __rsub__(self, other: float) -> Expr:
        return node("sub", other, self)

    def __mul__(self, other: Expr | float) -> Expr:
        return node("mul", self, other)

    def __truediv__(self, other: Expr | float) -> Expr:
        return node("div", self, other)

    def __neg__(self) -> Expr:
        return node("neg", self)

    @property
    def is_truth(self) -> bool:
        """Whether the value is true or false rather than a number."""
        return self.op in OPS and OPS[self.op].kind == "truth"

    @property
    def is_leaf(self) -> bool:
        """Whether the node works on no other nodes."""
        return not self.args

    def __repr__(self) -> str:
        return self.label or (f"{self.value:g}" if self.op == "constant" else f"<{self.op}>")


# Weak, so that graphs that nobody holds are freed.
_known: weakref.WeakValueDictionary[tuple, Expr] = weakref.WeakValueDictionary()

# How many leading arguments of an operation are true or false.
_TRUTHS = {"where": 1, "and": 2, "or": 2, "not": 1}


def _intern(
    op: str,
    args: tuple[Expr, ...] = (),
    shape: Shape = (),
    label: str = "",
    role: str = "",
    value: float = 0.0,
) -> Expr:
    # repr tells 0.0 from -0.0 and lets NaN equal itself.
    key = (op, args, shape, label, role, repr(value))
    found = _known.get(key)
    if found is None:
        found = Expr(op, args, shape, label, role, value)
        _known[key] = found
    return found


def constant(value: float) -> Expr:
    """A number that is the same for every unit."""
    return _intern("constant", value=float(value))


def leaf(label: str, shape: Shape, role: str) -> Expr:
    """A value that comes from outside the graph."""
    if role not in ROLES:
        raise ValueError(f"role must be one of {ROLES}, got {role!r}")
    return _intern("input", shape=shape, label=label, role=role)


def size(axis: str) -> Expr:
    """The number of units along an axis, as a number in the graph."""
    return _intern("size", label=axis)


def node(name: str, *args: Expr | float) -> Expr:
    """The operation `name` on `args`; plain numbers become constants.

    Raises:
        ShapeError: the shapes do not fit the operation.
        TraceError: arithmetic on a true/false value, or a condition that is not one.
    """
    op = OPS[name]
    nodes = tuple(a if isinstance(a, Expr) else constant(a) for a in args)
    truths = _TRUTHS.get(name, 0)
    for position, arg in enumerate(nodes):
        if position < truths and not arg.is_truth:
            raise TraceError(f"`{name}` needs a condition such as a > b, got a number. Write the comparison.")
        if position >= truths and arg.is_truth:
            raise TraceError(
                f"`{name}` got a true/false value where a number is needed. "
                "Write torch.where(condition, a, b) instead of arithmetic on a comparison."
            )
    return _intern(name, nodes, op.shape(*(arg.shape for arg in nodes)))


def order(outputs: Iterable[Expr]) -> list[Expr]:
    """Every node below `outputs`, each after its arguments, in the order of the computation."""
    done: dict[Expr, None] = {}
    stack = [(expr, False) for expr in reversed(list(outputs))]
    while stack:
        expr, ready = stack.pop()
        if ready:
            done[expr] = None
        elif expr not in done:
            stack.append((expr, True))
            stack.extend((arg, False) for arg in reversed(expr.args) if arg not in done)
    return list(done)
