"""Graphs for tests: one per operation, random ones, and how they are run three ways."""

import numpy as np
import torch
from hypothesis import strategies as st

from cellfuse.graph.expr import leaf, node
from cellfuse.graph.graph import Graph
from cellfuse.graph.ops import BLOCKS, OPS
from cellfuse.runtime.torch_text import torch_function

SIZES = {"H": 4, "P": 3, "N": 2, "K": 2}
H, P, MATRIX, TALL = ("H",), ("P",), ("H", "H"), ("P", "H")

# The shapes of the arguments of every operation. Element-wise ones are tried with a number, too.
PAIRS, SINGLE = [(H, H), (H, ()), ((), H)], [(H,), ((),)]
ARGUMENTS = {
    **dict.fromkeys(("add", "sub", "mul", "div", "pow", "max", "min"), PAIRS),
    **dict.fromkeys(("neg", "abs", "sign", "sqrt", "exp", "log", "expm1", "log1p"), SINGLE),
    **dict.fromkeys(("sin", "cos", "erf", "tanh", "sigmoid", "relu", "softplus", "detach"), SINGLE),
    **dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne"), PAIRS[:2]),
    "where": PAIRS,
    "and": [(H, H)],
    "or": [(H, H)],
    "not": [(H,)],
    "sum": [(H,)],
    "amax": [(H,)],
    "cumsum": [(H,)],
    "cumsum_reversed": [(H,)],
    "expand": [((), H)],
    "product": [(MATRIX, H), (TALL, H)],
    "product_t": [(MATRIX, H), (TALL, P)],
    "outer": [(H, H), (P, H)],
    "blocks_product": [(BLOCKS, H)],
    "blocks_product_t": [(BLOCKS, H)],
    "blocks_outer": [(H, H, BLOCKS)],
}
CASES = [(name, shapes) for name, every in ARGUMENTS.items() for shapes in every]
POSITIVE = {"sqrt": (0,), "log": (0,), "log1p": (0,), "pow": (0,), "div": (1,)}  # arguments kept above 0


def of_operation(name, shapes):
    """A graph of one operation. One on truths chooses between its last two inputs by them."""
    inputs = [leaf(f"a{k}", shape, "parameter") for k, shape in enumerate(shapes)]
    if OPS[name].kind == "truth" or name == "where":
        x, y = leaf("x", H, "parameter"), leaf("y", H, "parameter")
        if name in ("and", "or", "not"):
            made = node(name, *(node("gt", arg, 0.0) for arg in inputs))
        elif name == "where":
            made, (x, y) = node("gt", leaf("c", H, "parameter"), 0.0), inputs
            inputs.insert(0, made.args[0])
        else:
            made = node(name, *inputs)
        inputs += [value for value in (x, y) if value not in inputs]
        made = node("where", made, x, y)
    else:
        made = node(name, *inputs)
    return Graph(name, tuple(inputs), (("result", made),))


def shape_of(axes):
    return tuple(SIZES[axis] for axis in axes)


def values_of(graph, seed=0, positive=()):
    """Random numbers by label; away from 0, where many operations have a kink."""
    draw = np.random.default_rng(seed)
    values = {}
    for k, expr in enumerate(graph.inputs):
        value = np.asarray(draw.uniform(0.3, 1.5, shape_of(expr.shape)))
        values[expr.label] = (
            value if k in positive else np.asarray(value * draw.choice([-1.0, 1.0], value.shape))
        )
    return values


def with_torch(graph, tensors):
    """The graph's results through its text in torch."""
    size = {axis: torch.tensor(float(count)) for axis, count in SIZES.items()}
    return torch_function(graph)(*(tensors[expr.label] for expr in graph.inputs), size)


def as_shape(value, shape):
    """A result as an array of its shape: a number may be [1], a constant has no axes."""
    value = value.detach().numpy(force=True) if isinstance(value, torch.Tensor) else np.asarray(value, float)
    wanted = shape_of(shape)
    return value.reshape(wanted) if value.size == np.prod(wanted) else np.broadcast_to(value, wanted)


@st.composite
def random_graphs(draw):
    """A graph of up to ten operations of every kind, safe from division by zero and overflow."""
    leaves = [leaf("h", H, "state"), leaf("a", H, "parameter"), leaf("p", P, "parameter")]
    leaves += [leaf("s", (), "parameter"), leaf("R", MATRIX, "matrix"), leaf("Q", TALL, "matrix")]
    leaves += [leaf("B", BLOCKS, "matrix")]
    nodes = list(leaves)

    def pick(*shapes):
        return draw(st.sampled_from([n for n in nodes if n.shape in shapes]))

    def positive(value):
        return node("add", node("mul", value, value), 0.5)

    for _ in range(draw(st.integers(1, 10))):
        name = draw(st.sampled_from(sorted(OPS)))
        if name in ("product", "product_t", "outer", "cumsum", "blocks_product", "blocks_outer"):
            shapes = draw(st.sampled_from(ARGUMENTS[name]))
        else:
            shapes = ARGUMENTS[name][0]
        if OPS[name].kind == "truth" or name == "where":
            first = draw(st.sampled_from([H, ()]))
            a, b = pick(first, ()), pick(first)
            truth = node("lt", a, b) if name in ("where", "and", "or", "not") else node(name, a, b)
            if name in ("and", "or"):
                truth = node(name, truth, node("gt", pick(first), 0.1))
            if name == "not":
                truth = node(name, truth)
            made = node("where", truth, pick(first), pick((), first))
        elif len(shapes) == 2 and shapes[0] == shapes[1] == H and name != "outer":
            a, b = pick(H, P, ()), None
            b = pick(a.shape, ())
            b = positive(b) if name == "div" else b
            made = node(name, positive(a), node("tanh", b)) if name == "pow" else node(name, a, b)
        elif name in ("sqrt", "log", "log1p"):
            made = node(name, positive(pick(H, P, ())))
        elif name in ("exp", "expm1"):
            made = node(name, node("tanh", pick(H, P, ())))
        else:
            made = node(name, *(pick(shape) for shape in shapes))
        nodes.append(made)
    results = [n for n in nodes[len(leaves) :] if not n.is_truth][-2:]
    used = tuple(leaves)
    return Graph("random", used, tuple((f"y{k}", result) for k, result in enumerate(results)))
