"""Graph -> Python text that computes it with torch -> function. The eager backend's code generator.

The text is plain PyTorch, so autograd gives every order of derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from cellfuse.graph.expr import Expr, order
from cellfuse.graph.graph import Graph


def blocks_product(matrix: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Block-diagonal matrix [N, K, K] times [..., N*K]."""
    parts = value.unflatten(-1, (matrix.shape[0], matrix.shape[2]))
    return torch.einsum("nij,...nj->...ni", matrix, parts).flatten(-2)


def blocks_product_t(matrix: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Its transpose."""
    return blocks_product(matrix.transpose(1, 2), value)


def blocks_outer(left: torch.Tensor, right: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The blocks of the outer product of two values of H units."""
    heads, width = like.shape[-3], like.shape[-1]
    left, right = left.unflatten(-1, (heads, width)), right.unflatten(-1, (heads, width))
    return left.unsqueeze(-1) * right.unsqueeze(-2)


def logaddexp0(value: torch.Tensor) -> torch.Tensor:
    """log(1 + exp(a)), exact for large a, where torch's softplus switches to the identity."""
    return torch.logaddexp(torch.zeros_like(value), value)


def _tensors(like: torch.Tensor, *values: Any) -> list[torch.Tensor]:
    """Numbers among the values as tensors without axes; torch.maximum and torch.where want them."""
    return [v if isinstance(v, torch.Tensor) else like.new_full((), v) for v in values]


def maximum(value: Any, other: Any, like: torch.Tensor) -> torch.Tensor:
    """torch.maximum that takes numbers."""
    return torch.maximum(*_tensors(like, value, other))


def minimum(value: Any, other: Any, like: torch.Tensor) -> torch.Tensor:
    """torch.minimum that takes numbers."""
    return torch.minimum(*_tensors(like, value, other))


def where(condition: torch.Tensor, value: Any, other: Any, like: torch.Tensor) -> torch.Tensor:
    """torch.where that takes two numbers, in the dtype of the step."""
    value, other = _tensors(like, value, other)
    return torch.where(condition, value, other)


# One spelling per row of the operation table.
SPELL: dict[str, str] = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "neg": "-{0}",
    "pow": "torch.pow({0}, {1})",
    "abs": "torch.abs({0})",
    "sign": "torch.sign({0})",
    "sqrt": "torch.sqrt({0})",
    "exp": "torch.exp({0})",
    "log": "torch.log({0})",
    "expm1": "torch.expm1({0})",
    "log1p": "torch.log1p({0})",
    "sin": "torch.sin({0})",
    "cos": "torch.cos({0})",
    "erf": "torch.erf({0})",
    "tanh": "torch.tanh({0})",
    "sigmoid": "torch.sigmoid({0})",
    "relu": "torch.relu({0})",
    "softplus": "logaddexp0({0})",
    "max": "maximum({0}, {1}, like)",
    "min": "minimum({0}, {1}, like)",
    "where": "where({0}, {1}, {2}, like)",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "and": "{0} & {1}",
    "or": "{0} | {1}",
    "not": "~{0}",
    "detach": "{0}.detach()",
    "sum": "{0}.sum(-1, keepdim=True)",
    "amax": "{0}.amax(-1, keepdim=True)",
    "cumsum": "{0}.cumsum(-1)",
    "cumsum_reversed": "{0}.flip(-1).cumsum(-1).flip(-1)",
    "expand": "{0} + torch.zeros_like({1})",
    "product": "F.linear({1}, {0})",
    "product_t": "F.linear({1}, {0}.t())",
    "outer": "{0}.unsqueeze(-1) * {1}.unsqueeze(-2)",
    "blocks_product": "blocks_product({0}, {1})",
    "blocks_product_t": "blocks_product_t({0}, {1})",
    "blocks_outer": "blocks_outer({0}, {1}, {2})",
}


@dataclass(frozen=True)
class Product:
    """Several gates' recurrent products of one value, made by a single call.

    Attributes:
        gates: the gates, in packing order.
        operand: the value that is multiplied.
        has_bias: whether the recurrent biases are added in the same call.
    """

    gates: tuple[str, ...]
    operand: Expr
    has_bias: bool


@dataclass(frozen=True)
class TorchStep:
    """One time step as a Python function.

    Attributes:
        text: the function's source.
        inputs: labels of the leading arguments: the graph's inputs less those inside `products`.
        products: each gives two more arguments, its rows of weight_hh and of bias_hh (or None).
        function: (*inputs, *rows and biases, sizes) -> (output, new states ...).
    """

    text: str
    inputs: tuple[str, ...]
    products: tuple[Product, ...]
    function: Callable[..., tuple[torch.Tensor, ...]]


def torch_step(graph: Graph) -> TorchStep:
    """The function of one time step, with products of the same value joined into one call.

    Layers call it when they are made: Dynamo cannot look into the making of a function.
    """
    # Kept on the graph rather than in a functools cache, which Dynamo refuses to look into.
    made = graph.__dict__.get("torch_step")
    if made is None:
        made = graph.__dict__["torch_step"] = _torch_step(graph)
    return made


def _torch_step(graph: Graph) -> TorchStep:
    products, parts, hidden = _join_products(graph)
    inside = {f"R_{gate}" for product in products for gate in product.gates}
    inside |= {f"{gate}.b" for product in products if product.has_bias for gate in product.gates}
    inputs = tuple(leaf.label for leaf in graph.inputs if leaf.label not in inside)
    made: set[int] = set()

    def spell(expr: Expr, text: dict[Expr, str], lines: list[str]) -> str | None:
        if expr in hidden:
            return ""
        if expr not in parts:
            return None
        which, index = parts[expr]
        product = products[which]
        many = len(product.gates) > 1
        if which not in made:
            made.add(which)
            call = f"F.linear({text[product.operand]}, rows{which}, bias{which})"
            lines.append(f"p{which} = {call}" + f".chunk({len(product.gates)}, -1)" * many)
        return f"p{which}[{index}]" if many else f"p{which}"

    rows = [f"{kind}{which}" for which in range(len(products)) for kind in ("rows", "bias")]
    names = {leaf.label: name for leaf, name in _names(graph).items()}
    source = _source(graph, [names[label] for label in inputs] + rows, spell)
    return TorchStep(source, inputs, products, _compile(source, graph.name))


@lru_cache(maxsize=512)
def torch_function(graph: Graph) -> Callable[..., tuple[torch.Tensor, ...]]:
    """Any graph as a function (*values of graph.inputs, size) -> results; joins nothing.

    `size` maps axis letters to tensors without axes; it may be empty if the graph reads none.
    """
    arguments = list(_names(graph).values())
    return _compile(_source(graph, arguments, lambda expr, text, lines: None), graph.name)


@lru_cache(maxsize=512)
def stacked_function(graph: Graph) -> Callable[..., tuple[torch.Tensor, ...]]:
    """As `torch_function`, for D steps with weights of their own at once: every value has D in front.

    Values are [D, B, H], matrices [D, H, H], blocks [D, N, K, K], parameters [D, 1, H] or [D, 1, 1].
    """

    def spell(expr: Expr, text: dict[Expr, str], lines: list[str]) -> str | None:
        if expr.op not in _STACKED:
            return None
        lines.append(f"p{len(lines)} = {_STACKED[expr.op].format(*(text[arg] for arg in expr.args))}")
        return lines[-1].split(" ", 1)[0]

    arguments = list(_names(graph).values())
    return _compile(_source(graph, arguments, spell), f"{graph.name}, stacked")


# The operations whose usual spelling knows no further axis in front.
_STACKED = {
    "product": "torch.bmm({1}, {0}.mT)",
    "blocks_product": "torch.einsum('dnij,dbnj->dbni', {0}, {1}.unflatten(-1, {0}.shape[1::2])).flatten(-2)",
}


def _join_products(
    graph: Graph,
) -> tuple[tuple[Product, ...], dict[Expr, tuple[int, int]], set[Expr]]:
    """The products that share their operand; (product, part) of each node they replace; the nodes
    that disappear because only their sum with the bias is read."""
    nodes = order(graph.results)
    users: dict[Expr, list[Expr]] = {}
    for expr in nodes:
        for arg in expr.args:
            users.setdefault(arg, []).append(expr)
    position = {leaf: index for index, leaf in enumerate(graph.inputs)}
    by_operand: dict[Expr, list[Expr]] = {}
    for expr in nodes:
        if expr.op == "product" and expr.args[0].label.startswith("R_"):
            by_operand.setdefault(expr.args[1], []).append(expr)
    products: list[Product] = []
    parts: dict[Expr, tuple[int, int]] = {}
    hidden: set[Expr] = set()
    for operand, members in by_operand.items():
        members.sort(key=lambda expr: position[expr.args[0]])
        sums = [_sum_with_bias(expr, users.get(expr, []), graph) for expr in members]
        with_bias = [total for total in sums if total is not None]
        has_bias = len(with_bias) == len(members)
        if has_bias:
            hidden.update(members)
        for index, expr in enumerate(with_bias if has_bias else members):
            parts[expr] = (len(products), index)
        gates = tuple(expr.args[0].label.removeprefix("R_") for expr in members)
        products.append(Product(gates, operand, has_bias))
    return tuple(products), parts, hidden


def _sum_with_bias(product: Expr, users: list[Expr], graph: Graph) -> Expr | None:
    """The node R v + b, if that is all the product is used for."""
    if len(users) != 1 or users[0].op != "add" or product in graph.results:
        return None
    left, right = users[0].args
    bias = right if left is product else left
    return users[0] if bias.role == "bias" else None


Spell = Callable[[Expr, dict[Expr, str], list[str]], str | None]


def _source(graph: Graph, arguments: list[str], spell: Spell) -> str:
    """The text of `step`. `spell` may give a node's text itself, or None for the table's."""
    text = _names(graph)
    state = next((leaf for leaf in graph.inputs if leaf.role == "state"), graph.inputs[0])
    lines = [f"like = {text[state]}"]
    for expr in order(graph.results):
        own = spell(expr, text, lines)
        if own is not None:
            text[expr] = own
        elif expr.op == "constant":
            text[expr] = _number(expr.value)
        elif expr.op == "size":
            text[expr] = f"size[{expr.label!r}]"
        elif expr.op != "input":
            args = [text[arg] for arg in expr.args]
            if all(arg.op == "constant" for arg in expr.args):  # torch's functions want a tensor
                args = [f"like.new_full((), {arg})" for arg in args]
            text[expr] = f"v{len(lines)}"
            lines.append(f"{text[expr]} = {SPELL[expr.op].format(*args)}")
    results = ", ".join(text[expr] for expr in graph.results)
    head = f"def step({', '.join([*arguments, 'size'])}):"
    return "\n    ".join([head, *lines, f"return ({results},)"]) + "\n"


def _names(graph: Graph) -> dict[Expr, str]:
    """A Python name for each input; p.i and p_i are two."""
    names: dict[Expr, str] = {}
    for leaf in graph.inputs:
        name = _python(leaf.label)
        while name in names.values():
            name += "_"
        names[leaf] = name
    return names


def _python(label: str) -> str:
    """A leaf's label as a Python name: f.x -> x_f, f.b -> b_f, d(new h) -> in_d_new_h_."""
    stem, dot, tail = label.partition(".")
    if dot and tail in ("x", "b") and stem.isidentifier():
        return f"{tail}_{stem}"
    return "in_" + "".join(c if c.isalnum() else "_" for c in label)


def _number(value: float) -> str:
    text = repr(value) if math.isfinite(value) else f"float('{value}')"
    return f"({text})" if value < 0 else text


def _compile(source: str, name: str) -> Callable[..., Any]:
    namespace: dict[str, Any] = {
        "torch": torch,
        "F": F,
        "logaddexp0": logaddexp0,
        "maximum": maximum,
        "minimum": minimum,
        "where": where,
        "blocks_product": blocks_product,
        "blocks_product_t": blocks_product_t,
        "blocks_outer": blocks_outer,
    }
    exec(compile(source, f"<cellfuse step of {name}>", "exec"), namespace)
    step: Callable[..., Any] = namespace["step"]
    return step
