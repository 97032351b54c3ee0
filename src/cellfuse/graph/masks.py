"""Graph of one time step -> the same with zoneout and dropout of its recurrent products.

Masks come from outside, as leaves: no graph draws random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cellfuse.graph.expr import Expr, leaf, node, order
from cellfuse.graph.graph import Graph
from cellfuse.graph.simplify import simplify

MASKS = ("mask", "lasting mask")  # roles
DROPOUT = "dropout:R"  # label of what the operands of recurrent products are multiplied by


def zoneout_label(state: str) -> str:
    """Label of a state's mask: not 0 where a unit keeps its value."""
    return f"zoneout:{state}"


def is_mask(label: str) -> bool:
    """Whether a leaf's label is a mask's; no weight has such a name."""
    return label == DROPOUT or label.startswith(zoneout_label(""))


def has_recurrent_product(step: Graph) -> bool:
    """Whether there is anything that dropout of recurrent products would act on."""
    return any(_is_recurrent(expr) for expr in order(step.results))


def with_masks(step: Graph, zoneout: Mapping[str, float | None], has_dropout: bool) -> Graph:
    """The step with masks.

    Args:
        zoneout: by state: None for a mask of its own at each time step, or the probability that a unit keeps
            its value, for the expectation, which needs no mask.
        has_dropout: what recurrent matrices multiply is multiplied by a mask first, the same at all steps.
    """
    new: dict[Expr, Expr] = {}
    made: list[Expr] = []
    for expr in order(step.results):
        args = tuple(new[arg] for arg in expr.args)
        if has_dropout and _is_recurrent(expr):
            matrix, operand = args
            axis = matrix.shape[1] if len(matrix.shape) == 2 else "H"
            made = [leaf(DROPOUT, (axis,), "lasting mask")]
            args = (matrix, node("mul", operand, made[0]))
        new[expr] = expr if expr.is_leaf else node(expr.op, *args)
    (_, output), *states = ((name, new[expr]) for name, expr in step.outputs)
    mixed = []
    for (name, after), before in zip(states, step.of_role("state"), strict=True):
        if before.label in zoneout:
            mixed.append((name, _mixed(before, after, zoneout[before.label], made)))
        else:
            mixed.append((name, after))
    # An output that is a state is the state that goes on.
    output = next((m for (_, s), (_, m) in zip(states, mixed, strict=True) if s is output), output)
    outputs = (("output", output), *mixed)
    names = tuple((new[expr], name) for expr, name in step.names if expr in new)
    return simplify(replace(step, inputs=(*step.inputs, *made), outputs=outputs, names=names))


def _is_recurrent(expr: Expr) -> bool:
    """Whether a node is a recurrent weight times a value; a projection is none."""
    if expr.op not in ("product", "blocks_product", "mul"):
        return False
    role = "diagonal" if expr.op == "mul" else "matrix"
    return expr.args[0].role == role and expr.args[0].label.startswith("R_")


def _mixed(before: Expr, after: Expr, share: float | None, made: list[Expr]) -> Expr:
    """What goes on to the next step: of each unit the old value or the new one."""
    if share is not None:
        return node("add", node("mul", before, share), node("mul", after, 1.0 - share))
    mask = leaf(zoneout_label(before.label), before.shape, "mask")
    made.append(mask)
    # A choice rather than a product: 0 times infinity is no number.
    return node("where", node("ne", mask, 0.0), before, after)
