"""The closed table of operations: what each one means, how it differentiates, which shapes it takes.

A value belongs to one sequence at one time step; there is no batch and no time here. Its shape is a
tuple of axis letters: `()` a number, `("H",)` one value per unit, `("P",)` per projected unit,
`("H", "P")` a matrix, `("N", "K", "K")` a block-diagonal matrix of N heads with K = H / N units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cellfuse.errors import ShapeError

if TYPE_CHECKING:
    from cellfuse.graph.expr import Expr

Shape = tuple[str, ...]
BLOCKS: Shape = ("N", "K", "K")
Gradients = tuple["Expr | None", ...]


@dataclass(frozen=True)
class Op:
    """One row of the table.

    Attributes:
        name: the operation's name in every printed form.
        meaning: the value, on NumPy float64 arrays. This line is the definition: backends agree
            with it.
        vjp: the gradients of the arguments as graph nodes, given (grad, result, *arguments);
            None where nothing flows.
        shape: the result's shape from the arguments' shapes; raises ShapeError.
        kind: "number" for arithmetic, "truth" where the result is true or false.
    """

    name: str
    meaning: Callable[..., Any]
    vjp: Callable[..., Gradients]
    shape: Callable[..., Shape]
    kind: str = "number"


def _together(*shapes: Shape) -> Shape:
    """Element-wise: all shapes are equal, numbers go with everything."""
    wide = {shape for shape in shapes if shape}
    if len(wide) > 1:
        given = " and ".join(f"[{', '.join(shape)}]" for shape in sorted(wide))
        raise ShapeError(
            f"values of the shapes {given} cannot be combined element by element; "
            "bring one to the other's width by a product, such as gate.k.of(v) or gate.project(v)"
        )
    return wide.pop() if wide else ()


def _vector(shape: Shape) -> Shape:
    if len(shape) != 1:
        raise ShapeError(
            f"this operation works along the hidden axis of one value per unit, got [{', '.join(shape)}]"
        )
    return shape


def _number(shape: Shape) -> Shape:
    _vector(shape)
    return ()


def _like(value: Shape, like: Shape) -> Shape:
    if value not in ((), like):
        raise ShapeError(f"[{', '.join(value)}] cannot be expanded to [{', '.join(like)}]")
    return like


def _product(matrix: Shape, vector: Shape) -> Shape:
    if len(matrix) != 2 or vector != matrix[1:]:
        raise ShapeError(f"a matrix {list(matrix)} cannot multiply a value {list(vector)}")
    return matrix[:1]


def _product_t(matrix: Shape, vector: Shape) -> Shape:
    if len(matrix) != 2 or vector != matrix[:1]:
        raise ShapeError(f"a transposed matrix {list(matrix)} cannot multiply a value {list(vector)}")
    return matrix[1:]


def _outer(left: Shape, right: Shape) -> Shape:
    return _vector(left) + _vector(right)


def _blocks_product(matrix: Shape, vector: Shape) -> Shape:
    if matrix != BLOCKS or vector != ("H",):
        raise ShapeError(f"blocks {list(matrix)} cannot multiply a value {list(vector)}")
    return vector


def _blocks_outer(left: Shape, right: Shape, like: Shape) -> Shape:
    if left != ("H",) or right != ("H",) or like != BLOCKS:
        raise ShapeError(f"no blocks from {list(left)} and {list(right)}")
    return BLOCKS


def _sigmoid(a: Any) -> Any:
    # Rather than 1 / (1 + exp(-a)), which overflows for large negative a.
    return np.exp(-np.logaddexp(0.0, -a))


def _split(matrix: Any, vector: Any) -> Any:
    """A value of H units as [N, K], for the block matrix [N, K, K]."""
    return vector.reshape(*vector.shape[:-1], matrix.shape[-3], matrix.shape[-1])


def _blocks_apply(matrix: Any, vector: Any) -> Any:
    return np.einsum("...nij,...nj->...ni", matrix, _split(matrix, vector)).reshape(vector.shape)


def _blocks_apply_t(matrix: Any, vector: Any) -> Any:
    return np.einsum("...nij,...ni->...nj", matrix, _split(matrix, vector)).reshape(vector.shape)


def _blocks_of_outer(left: Any, right: Any, like: Any) -> Any:
    return np.einsum("...ni,...nj->...nij", _split(like, left), _split(like, right))


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _same(*_: Any) -> Gradients:
    return (None, None)


def _node(name: str, *args: Any) -> Expr:
    # Not at the top: an Expr looks its operation up in this table.
    from cellfuse.graph.expr import node

    return node(name, *args)


def _zero_unless(condition: Expr, value: Expr | float) -> Expr:
    return _node("where", condition, value, 0.0)


def _chosen_side(name: str) -> Callable[..., Gradients]:
    """Gradient of maximum and minimum: to the chosen side, half to each at a tie, all at NaN (as in torch).

    `name` is the comparison that holds where the other side is chosen.
    """

    def vjp(g: Expr, y: Expr, a: Expr, b: Expr) -> Gradients:
        share = _node("where", _node("eq", a, b), g * 0.5, g)
        return _node("where", _node(name, a, b), 0.0, share), _node("where", _node(name, b, a), 0.0, share)

    return vjp


def _amax_vjp(g: Expr, y: Expr, a: Expr) -> Gradients:
    """Gradient of the largest value: shared evenly among the units that hold it (as in torch)."""
    hit = _zero_unless(_node("eq", a, y), 1.0)
    return (g * hit / _node("sum", hit),)


_ROWS = (
    # arithmetic
    Op("add", lambda a, b: a + b, lambda g, y, a, b: (g, g), _together),
    Op("sub", lambda a, b: a - b, lambda g, y, a, b: (g, -g), _together),
    Op("mul", lambda a, b: a * b, lambda g, y, a, b: (g * b, g * a), _together),
    Op("div", lambda a, b: a / b, lambda g, y, a, b: (g / b, -(g * y) / b), _together),
    Op("neg", lambda a: -a, lambda g, y, a: (-g,), _together),
    Op(
        "pow",
        lambda a, b: a**b,
        lambda g, y, a, b: (g * b * _node("pow", a, b - 1.0), g * y * _node("log", a)),
        _together,
    ),
    # functions of one value
    Op("abs", np.abs, lambda g, y, a: (g * _node("sign", a),), _together),
    # 0 for NaN, as in torch
    Op("sign", lambda a: np.nan_to_num(np.sign(a)), lambda g, y, a: (None,), _together),
    Op("sqrt", np.sqrt, lambda g, y, a: (g * 0.5 / y,), _together),
    Op("exp", np.exp, lambda g, y, a: (g * y,), _together),
    Op("log", np.log, lambda g, y, a: (g / a,), _together),
    # exp(a) - 1 and log(1 + a), whose digits a sum with 1 would lose near 0
    Op("expm1", np.expm1, lambda g, y, a: (g * (y + 1.0),), _together),
    Op("log1p", np.log1p, lambda g, y, a: (g / (a + 1.0),), _together),
    Op("sin", np.sin, lambda g, y, a: (g * _node("cos", a),), _together),
    Op("cos", np.cos, lambda g, y, a: (-(g * _node("sin", a)),), _together),
    Op(
        "erf",
        lambda a: _erf(a),
        lambda g, y, a: (g * (2 / math.sqrt(math.pi)) * _node("exp", -(a * a)),),
        _together,
    ),
    Op("tanh", np.tanh, lambda g, y, a: (g * (1.0 - y * y),), _together),
    Op("sigmoid", _sigmoid, lambda g, y, a: (g * y * (1.0 - y),), _together),
    Op(
        "relu",
        lambda a: np.maximum(a, 0.0),
        # As torch's: the gradient of NaN goes through.
        lambda g, y, a: (_node("where", _node("le", y, 0.0), 0.0, g),),
        _together,
    ),
    # log(1 + exp(a)) without overflow
    Op(
        "softplus",
        lambda a: np.logaddexp(0.0, a),
        lambda g, y, a: (g * _node("sigmoid", a),),
        _together,
    ),
    # choice
    Op("max", np.maximum, _chosen_side("lt"), _together),
    Op("min", np.minimum, _chosen_side("gt"), _together),
    Op(
        "where",
        lambda c, a, b: np.where(c, a, b),
        lambda g, y, c, a, b: (None, _node("where", c, g, 0.0), _node("where", c, 0.0, g)),
        _together,
    ),
    Op("lt", np.less, _same, _together, "truth"),
    Op("le", np.less_equal, _same, _together, "truth"),
    Op("gt", np.greater, _same, _together, "truth"),
    Op("ge", np.greater_equal, _same, _together, "truth"),
    Op("eq", np.equal, _same, _together, "truth"),
    Op("ne", np.not_equal, _same, _together, "truth"),
    Op("and", np.logical_and, _same, _together, "truth"),
    Op("or", np.logical_or, _same, _together, "truth"),
    Op("not", np.logical_not, lambda g, y, a: (None,), _together, "truth"),
    Op("detach", lambda a: a, lambda g, y, a: (None,), _together),
    # along the hidden axis
    Op(
        "sum",
        lambda a: a.sum(axis=-1, keepdims=True),
        lambda g, y, a: (_node("expand", g, a),),
        _number,
    ),
    Op("amax", lambda a: a.max(axis=-1, keepdims=True), _amax_vjp, _number),
    Op(
        "cumsum",
        lambda a: a.cumsum(axis=-1),
        lambda g, y, a: (_node("cumsum_reversed", g),),
        _vector,
    ),
    Op(
        "cumsum_reversed",
        lambda a: a[..., ::-1].cumsum(axis=-1)[..., ::-1],
        lambda g, y, a: (_node("cumsum", g),),
        _vector,
    ),
    Op(
        "expand",
        lambda a, like: a + np.zeros_like(like),
        lambda g, y, a, like: (g, None),
        _like,
    ),
    # products with a weight matrix; `outer` is the gradient of the matrix
    Op(
        "product",
        lambda m, v: np.einsum("...ij,...j->...i", m, v),
        lambda g, y, m, v: (_node("outer", g, v), _node("product_t", m, g)),
        _product,
    ),
    Op(
        "product_t",
        lambda m, v: np.einsum("...ij,...i->...j", m, v),
        lambda g, y, m, v: (_node("outer", v, g), _node("product", m, g)),
        _product_t,
    ),
    Op(
        "outer",
        lambda a, b: a[..., :, None] * b[..., None, :],
        lambda g, y, a, b: (_node("product", g, b), _node("product_t", g, a)),
        _outer,
    ),
    Op(
        "blocks_product",
        _blocks_apply,
        lambda g, y, m, v: (_node("blocks_outer", g, v, m), _node("blocks_product_t", m, g)),
        _blocks_product,
    ),
    Op(
        "blocks_product_t",
        _blocks_apply_t,
        lambda g, y, m, v: (_node("blocks_outer", v, g, m), _node("blocks_product", m, g)),
        _blocks_product,
    ),
    Op(
        "blocks_outer",
        _blocks_of_outer,
        lambda g, y, a, b, like: (
            _node("blocks_product", g, b),
            _node("blocks_product_t", g, a),
            None,
        ),
        _blocks_outer,
    ),
)

OPS: dict[str, Op] = {op.name: op for op in _ROWS}
