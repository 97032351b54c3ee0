"""Random steps, sizes and options: the CPU kernel against the interpreters, guards around every buffer.

The output and the states are compared with the graph of one step run over time, which shares nothing with
the lowering; the gradients with the interpreted Program, which other tests compare with autograd.
"""

import numpy as np

from cellfuse.codegen.cpu.compile import Kernel
from cellfuse.codegen.cpu.layout import Layout, Sizes
from cellfuse.codegen.cpu.target import TARGETS, host
from cellfuse.codegen.interpret import Run
from cellfuse.codegen.lower import lower
from cellfuse.graph.expr import leaf, node, size
from cellfuse.graph.graph import Graph
from cellfuse.graph.interpret import interpret
from cellfuse.graph.masks import MASKS, with_masks
from cellfuse.graph.ops import BLOCKS
from cellfuse.graph.simplify import simplify
from codegen.kernel_runner import KernelRun

H = ("H",)
SMOOTH = ("tanh", "sigmoid", "sin", "cos", "erf", "softplus", "neg", "sub", "mul", "add", "div", "pow")
SMOOTH += ("exp", "log", "sqrt", "sum", "cumsum", "cumsum_reversed", "product", "product", "mean")
BROKEN = ("relu", "abs", "sign", "max", "min", "amax", "where", "detach")


def random_step(rng):
    """A graph of one time step: any operations, gates used or not, one to three states."""
    kind = rng.choice(["dense", "blocks", "diagonal"], p=[0.6, 0.2, 0.2])
    gates, states = "abcd"[: rng.integers(1, 5)], "hcm"[: rng.integers(1, 4)]
    products = [leaf(f"{gate}.x", H, "input product") for gate in gates if rng.random() < 0.8]
    carried = [leaf(state, H, "state") for state in states]
    shape = {"dense": ("H", "H"), "blocks": BLOCKS, "diagonal": H}[kind]
    role = "diagonal" if kind == "diagonal" else "matrix"
    matrices = [leaf(f"R_{gate}", shape, role) for gate in gates]
    biases = [leaf(f"{gate}.b", H, "bias") for gate in gates]
    own = [leaf("p", H, "parameter"), leaf("q", (), "parameter")]
    values, unused = [*products, *carried, *own], list(matrices)

    def pick(*shapes):
        found = [value for value in values if value.shape in (shapes or (H, ()))]
        return found[rng.integers(len(found))]

    def positive(value):
        return node("add", node("mul", value, value), 0.5)

    for _ in range(rng.integers(2, 15)):
        name = str(rng.choice(SMOOTH + BROKEN))
        if name == "product":
            if not unused:
                continue
            matrix = unused.pop(rng.integers(len(unused)))
            multiply = {"dense": "product", "blocks": "blocks_product", "diagonal": "mul"}[kind]
            made = node(multiply, matrix, node("tanh", pick(H)))
            if rng.random() < 0.5:
                made = node("add", made, biases[matrices.index(matrix)])
        elif name in ("add", "sub", "mul", "max", "min"):
            made = node(name, pick(), pick())
        elif name == "div":
            made = node("div", pick(), positive(pick()))
        elif name == "pow":
            made = node("pow", positive(pick()), node("tanh", pick()))
        elif name in ("log", "sqrt"):
            made = node(name, positive(pick()))
        elif name == "exp":
            made = node("exp", node("tanh", pick()))
        elif name == "mean":
            made = node("div", node("sum", pick(H)), size("H"))
        elif name in ("sum", "amax"):
            made = node("tanh", node(name, pick(H)))
        elif name.startswith("cumsum"):
            made = node("tanh", node(name, pick(H)))
        elif name == "where":
            truth = node(str(rng.choice(["lt", "le", "gt", "ge", "ne"])), pick(), pick())
            truth = node("not", truth) if rng.random() < 0.2 else truth
            if rng.random() < 0.3:
                truth = node(str(rng.choice(["and", "or"])), truth, node("gt", pick(), 0.1))
            made = node("where", truth, pick(), pick())
        else:
            made = node(name, pick())
        values.append(made)
    new = []
    for state in carried:
        value = values[-1 - rng.integers(min(4, len(values)))]
        value = node("add", node("mul", state, 0.5), node("tanh", value))
        new.append((f"new {state.label}", value))
    output = new[0][1] if rng.random() < 0.7 else node("tanh", node("add", pick(H), pick()))
    inputs = (*products, *carried, *matrices, *biases, *own)
    graph = simplify(Graph("fuzz", inputs, (("output", output), *new)))
    if rng.random() < 0.4:
        some = {state: rng.choice([None, None, 0.3]) for state in states if rng.random() < 0.7}
        graph = with_masks(graph, some, bool(rng.random() < 0.5))
    return graph, kind


def random_masks(rng, graph, T, B, hidden):
    """By label, those of time steps in the order of memory."""
    return {
        expr.label: rng.integers(0, 2, (T, B, hidden) if expr.role == "mask" else (B, hidden)) * 1.5
        for expr in graph.inputs
        if expr.role in MASKS
    }


def step_over_time(graph, products, states, fixed, axes):
    """The definition: the graph of one step, again and again."""
    carried = [leaf.label for leaf in graph.of_role("state")]
    known = [leaf.label for leaf in graph.of_role("input product")]
    now, outputs = list(states), []
    fresh = {label: fixed[label] for label in (mask.label for mask in graph.of_role("mask"))}
    for t in range(len(products[0])):
        given = {label: product[t] for label, product in zip(known, products, strict=True)}
        fixed = fixed | {label: mask[t] for label, mask in fresh.items()}
        output, *now = interpret(graph, given | dict(zip(carried, now, strict=True)) | fixed, axes)
        now = [np.broadcast_to(value, state.shape) for value, state in zip(now, states, strict=True)]
        outputs.append(np.broadcast_to(output, states[0].shape))
    return np.stack(outputs), now


def fuzz_one(seed, cases=5):
    """Some shapes and options of one random step. Returns how many were compared.

    Raises:
        AssertionError: a value is wrong or a guard was written; the seed makes it again.
    """
    rng = np.random.default_rng(seed)
    graph, kind = random_step(rng)
    program = lower(graph, recompute=bool(rng.random() < 0.3))
    if not program.inputs:
        return 0  # nothing of the input is read; the layer needs at least one such gate to be of use
    heads = int(rng.integers(1, 4)) if kind == "blocks" else 1
    hidden = heads * int(rng.choice([1, 2, 3, 5, 8, 13, 16, 17, 31]))
    sizes, axes = Sizes(hidden, 0, heads), {"H": hidden, "N": heads, "K": hidden // heads}
    fixed = {
        expr.label: rng.uniform(-1, 1, [axes[axis] for axis in expr.shape]) / hidden ** (len(expr.shape) > 1)
        for expr in graph.inputs
        if expr.role not in ("input product", "state", *MASKS)
    }
    of_program = fixed | {bias: np.zeros(hidden) for bias, _ in program.moved}
    usable = [
        name for name in ("avx512", "avx512-intel", "avx2", "sse") if TARGETS[name].bytes <= host().bytes
    ]
    target = TARGETS[str(rng.choice(usable))] if host().name != "neon" else host()
    kernel = Kernel(Layout(program, sizes, 64, target))
    for _ in range(cases):
        compare_case(rng, graph, program, kernel, (fixed, of_program), axes)
    return cases


def compare_case(rng, graph, program, kernel, fixed, axes):
    """One shape and direction."""
    T, B, hidden = int(rng.integers(1, 5)), int(rng.integers(1, 12)), axes["H"]
    is_reverse = bool(rng.random() < 0.3)
    turn = slice(None, None, -1) if is_reverse else slice(None)
    known = [leaf.label for leaf in graph.of_role("input product")]
    products = {label: rng.normal(size=(T, B, hidden)) for label in known}
    states = [rng.uniform(-1, 1, (B, hidden)) for _ in graph.of_role("state")]
    masks = random_masks(rng, graph, T, B, hidden)
    turned = {label: mask[turn] if mask.ndim == 3 else mask for label, mask in masks.items()}
    given = [products[k][turn] for k in known]
    output, finals = step_over_time(graph, given, states, fixed[0] | turned, axes)
    moved = {label: value.copy() for label, value in products.items()}
    for bias, gate in program.moved:
        moved[gate] = moved[gate] + fixed[0][bias]
    given = [moved[f"{gate}.x"] for gate in program.inputs]
    want = Run(program, [p[turn] for p in given], states, fixed[1] | turned, axes, T)
    got = KernelRun(kernel, given, states, fixed[1] | masks, T, is_reverse)
    close = {"rtol": 1e-7, "atol": 1e-8}
    for keep in (False, True):
        want.forward(keep=keep)
        values, last = got.forward(keep=keep)
        np.testing.assert_allclose(values, output[turn], **close)
        for a, b in zip(last, finals, strict=True):
            np.testing.assert_allclose(a, b, **close)
    gradient, gradients = rng.normal(size=output.shape), [rng.normal(size=state.shape) for state in states]
    want.backward(gradient[turn], gradients)
    for (name, k), value in got.backward(gradient, gradients).items():
        wanted = want.memory[name][k]
        np.testing.assert_allclose(value, wanted if name == "carry" else wanted[turn], **close)
