"""How much a layer holds and does: parameters, multiply-adds, bytes. Counted from the traced step."""

from __future__ import annotations

from cellfuse.explain.facts import Count
from cellfuse.graph.expr import order
from cellfuse.nn import Layer

_PRODUCTS = ("product", "blocks_product")


def counts_of(layer: Layer, T: int, B: int, element_size: int) -> list[Count]:
    """Counts for T time steps of B sequences (for packed input: as if all had the full length)."""
    L, D, H, P = layer.num_layers, layer.num_directions, layer.hidden_size, layer.proj_size
    axes = {"H": H, "P": P, "N": layer.num_heads, "K": H // layer.num_heads}
    step = layer.cell.step if layer.bias else layer.cell.step_without_bias
    weights = sum(p.numel() for name, p in layer.named_parameters() if name.startswith("weight"))
    others = sum(p.numel() for p in layer.parameters()) - weights
    widths = [layer.input_size] + [layer.output_size] * (L - 1)
    into = sum(D * len(layer.cell.input_gates) * H * width for width in widths) * T * B
    inside = elementwise = 0
    for expr in order(step.results):
        if expr.op in _PRODUCTS:
            size = 1
            for axis in expr.args[0].shape:
                size *= axes[axis]
            inside += size
        elif not expr.is_leaf:
            elementwise += axes[expr.shape[0]] if expr.shape else 1
    inside, elementwise = inside * L * D * T * B, elementwise * L * D * T * B
    chain = T * L if D == 2 else T + L - 1
    states = sum(P if layer.cell.width(s) == "P" else H for s in layer.cell.states) * L * D * B
    return [
        Count("parameters", weights + others, "", "parameters", "参数"),
        Count("weights", weights, "", "of these in matrices", "其中矩阵"),
        Count("others", others, "", "of these biases and others", "其中偏置及其他"),
        Count("parameter bytes", (weights + others) * element_size, "", "bytes of parameters", "参数字节"),
        Count("multiply-adds", into + inside, "", "multiply-adds, forward", "前向乘加"),
        Count("input products", into, "T*B*D*G*H*I per layer", "W x, before loop", "其中 W x（循环之前）"),
        Count("recurrent products", inside, "T*B*D*G*H*H per layer", "inside loop", "其中循环内"),
        Count("element-wise", elementwise, "", "element-wise operations", "逐元素运算"),
        Count("FLOPs", 2 * (into + inside) + elementwise, "", "floating-point operations", "浮点运算总数"),
        Count(
            "chain", chain, "T*L" if D == 2 else "T+L-1",
            "dependent steps, one after the other", "必须先后进行的步数",
        ),
        Count("output bytes", T * B * layer.output_size * element_size, "", "bytes of output", "output 字节"),
        Count("state bytes", states * element_size, "", "bytes of final states", "最终状态字节"),
    ]  # fmt: skip
