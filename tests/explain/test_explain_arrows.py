"""Every arrow of the pictures, confirmed on numbers: it is there exactly where a gradient is not zero."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import cellfuse as cf
from cellfuse.explain import layer_map, picture
from cellfuse.explain.cell_graph import _Builder
from cellfuse.explain.layer_map import draw_stack
from cellfuse.explain.subject import subject_of
from cellfuse.explain.wiring import columns, layers, over_time, place_of, wiring
from cellfuse.graph.ops import OPS
from explain.test_explain_pictures import CELLS, at, layer_of

T, H = 3, 3
STACKS = [(L, D) for L in (1, 2, 3) for D in (1, 2)]


def stack(kind, L, D):
    torch.manual_seed(0)
    return kind(2, H, L, bidirectional=D == 2).double()


def drawn(facts, **options):
    """The arrows of the picture, the joined boxes taken out again."""
    wires = {(w.source, w.target) for w in draw_stack(facts, **options).wires}
    into = {}
    for source, target in wires:
        if target.startswith("join/"):
            into.setdefault(target.rpartition("/")[0], []).append(source)
    made = {pair for pair in wires if not any(key.startswith("join/") for key in pair)}
    return made | {(a, b) for join, b in wires if join.startswith("join/") for a in into[join]}


def reached(arrows):
    """(input or first state, output or last state) for every way through the arrows."""
    after = {}
    for a, b in arrows:
        after.setdefault(a, set()).add(b)
    found = set()
    for start in [key for key in after if key.startswith(("x/", "start/"))]:
        seen, stack = set(), [start]
        while stack:
            for key in after.get(stack.pop(), ()):
                if key not in seen:
                    seen.add(key)
                    stack.append(key)
        found |= {(start, key) for key in seen if key.startswith(("out/", "h/"))}
    return found


def influences(layer, L, D):
    """The same pairs from the gradients of torch's own layer."""
    x = torch.randn(T, 1, 2, dtype=torch.float64, requires_grad=True)
    count = 2 if isinstance(layer, torch.nn.LSTM) else 1
    hx = [torch.randn(L * D, 1, H, dtype=torch.float64, requires_grad=True) for _ in range(count)]
    output, last = layer(x, tuple(hx) if count == 2 else hx[0])
    last = last if isinstance(last, tuple) else (last,)
    ends = {f"h/{k}": sum((s[k] ** 2).sum() for s in last) for k in range(L * D)}
    for t in range(T):
        for d in range(D):
            ends[f"out/{t}/{d}" if D == 2 else f"out/{t}"] = (output[t, :, d * H : d * H + H] ** 2).sum()
    found = set()
    for name, end in ends.items():
        flows = torch.autograd.grad(end, [x, *hx], retain_graph=True, allow_unused=True)
        flows = [torch.zeros(1) if flow is None else flow for flow in flows]
        found |= {(f"x/{t}", name) for t in range(T) if flows[0][t].any()}
        found |= {(f"start/{k}", name) for k in range(L * D) if any(flow[k].any() for flow in flows[1:])}
    return found


@pytest.mark.parametrize(("L", "D"), STACKS)
@pytest.mark.parametrize("kind", [torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM])
def test_the_picture_connects_what_gradients_connect(kind, L, D):
    layer = stack(kind, L, D)
    arrows = drawn(cf.explain(layer, (T, 1, 2)))
    assert reached(arrows) == influences(layer, L, D)


def blocks(L, D):
    """(weight, its columns, the arrows that it carries)."""
    for k in range(L):
        for d in range(D):
            here, ending = f"c/{k}/{d}", f"_l{k}{'_reverse' if d else ''}"
            yield f"weight_hh{ending}", slice(None), [("start/", here), (here, here)]
            if k == 0:
                yield f"weight_ih{ending}", slice(None), [("x/", here)]
            for below in range(D if k else 0):
                columns = slice(below * H, below * H + H)
                yield f"weight_ih{ending}", columns, [(f"c/{k - 1}/{below}", here)]


@pytest.mark.parametrize(("L", "D"), STACKS)
def test_each_arrow_is_carried_by_its_block_of_weights(L, D):
    """Without the block its arrows are gone, and nothing else."""
    for weight, part, carried in blocks(L, D):
        layer = stack(torch.nn.RNN, L, D)
        arrows = drawn(cf.explain(layer, (T, 1, 2)))
        with torch.no_grad():
            getattr(layer, weight)[:, part] = 0
        left = {
            (a, b) for a, b in arrows
            if not any(a.startswith(source) and b.startswith(target + "/") for source, target in carried)
        }  # fmt: skip
        assert left != arrows
        assert reached(left) == influences(layer, L, D), (weight, part)


def test_wrong_maps_are_seen(monkeypatch):
    """Planted: a wrong order of h_n, a reverse state that leaves at the wrong end, a missing arrow, one
    too many."""
    layer = stack(torch.nn.LSTM, 2, 2)
    facts, right = cf.explain(layer, (T, 1, 2)), influences(layer, 2, 2)
    assert reached(drawn(facts)) == right
    order = {"h/1": "h/2", "h/2": "h/1"}
    swapped = tuple((a, order.get(b, b)) for a, b in facts.wiring)
    assert reached(drawn(replace(facts, wiring=swapped))) != right
    missing = tuple(pair for pair in facts.wiring if pair != ("c/0/1", "c/1/0"))
    assert set(over_time(missing, T)) < set(over_time(facts.wiring, T))
    assert reached(over_time(missing, T)) != reached(over_time(facts.wiring, T))
    extra = (*facts.wiring, ("in/0", "c/1/0"))
    assert drawn(replace(facts, wiring=extra)) != drawn(facts)

    def leaves_late(arrows, length, steps):
        made = over_time(arrows, length, steps)
        return [(a[:-1] + str(length - 1), b) if b.startswith("h/") else (a, b) for a, b in made]

    monkeypatch.setattr(layer_map, "over_time", leaves_late)
    assert reached(drawn(facts)) != right


def short(key, times, shown, L, D):
    """The box that stands for a key where not everything is drawn."""
    kind, *rest = key.split("/")
    if kind == "c" and place_of(int(rest[0]), shown) not in range(L):
        return "gap"
    if kind == "h" and place_of(int(rest[0]) // D, shown) not in range(L):
        return "h/gap"
    if kind in ("h", "start"):
        return key
    t = place_of(int(rest[-1]), times)
    return "/".join([kind, *rest[:-1], f"{t}" if isinstance(t, int) else f"{t.first}-"])


@pytest.mark.parametrize("D", [1, 2])
def test_the_short_map_has_the_long_map_s_arrows(D):
    """Time steps and layers that are not drawn: an arrow between boxes is there if one between what they
    stand for is."""
    L, length = 12, 1000
    facts = at(cf.explain(layer_of(cf.cells.CELLS["gru"], L, D), (1, 3, 2)), length)
    for around in (None, 500):
        times, shown = columns(length, around), layers(L)

        wanted = set()
        for a, b in over_time(facts.wiring, length):
            source, target = (short(key, times, shown, L, D) for key in (a, b))
            hidden = a.startswith("start/") and target == "gap"
            if b.startswith("out/") and D == 2:
                target += "/" + a.split("/")[2]
            is_same_gap = source.split("/")[-1].endswith("-") and target.split("/")[-1].endswith("-")
            is_upwards = source.split("/")[:-1] != target.split("/")[:-1]
            is_aside = is_upwards and ("-" in source or "-" in target)
            if source != target and not hidden and not is_same_gap and not is_aside:
                wanted.add((source, target))
        found = drawn(facts, around=around)
        up = {(a, b) for a, b in found if a.startswith("join/")}
        assert {(a, b) for a, b in found if "gap" not in (a, b)} - up == {
            (a, b) for a, b in wanted if "gap" not in (a, b)
        }
        assert ("gap", "h/gap") in found


def test_h_n_and_where_it_leaves():
    """k = layer * D + direction, and the reverse direction leaves at t = 0."""
    facts = cf.explain(cf.GRU(2, 3, 3, bidirectional=True))
    arrows = drawn(facts)
    for k in range(6):
        layer, direction = divmod(k, 2)
        sources = [a for a, b in arrows if b == f"h/{k}"]
        assert sources == [f"c/{layer}/{direction}/{0 if direction else 4}"]
    drawing = facts.picture("stack").drawing
    for k in range(6):
        assert drawing.box(f"end/h/{k}").lines[0].text == f"h_n[{k}]"
        near = drawing.box(f"c/{k // 2}/{k % 2}/0")
        assert drawing.box(f"end/h/{k}").centre[1] == near.centre[1]
    texts = [text.text for text in drawing.texts]
    assert all(f"k = {k // 2}·2 + {k % 2}" in texts for k in range(6))


def numbers(graph, units):
    """A value for every leaf of a step."""
    rng = np.random.default_rng(0)
    sizes = {"H": units, "P": units // 2, "N": 2, "K": units // 2}
    return {leaf: rng.normal(size=tuple(sizes[a] for a in leaf.shape)) for leaf in graph.inputs}, sizes


def arrows_by_numbers(builder, units=8):
    """(a, b) for every two boxes where b changes with a while all other boxes stay as they are."""
    graph = builder.graph
    leaves, sizes = numbers(graph, units)
    keys = {**builder.keys, **{leaf: f"s/{leaf.label}" for leaf in graph.of_role("state")}}
    products = {leaf: leaves[leaf] for leaf in graph.of_role("input product")}
    base = {expr: value_of(expr, leaves, sizes, {}) for expr in keys}
    found = set()
    for target, key in builder.keys.items():
        if target.role == "parameter":
            continue
        others = {expr: value for expr, value in base.items() if expr is not target}
        for source, start in keys.items():
            if source is target:
                continue
            moved = {**others, source: 1.3 * base[source] + 0.37}
            if changes(target, base[target], leaves, sizes, moved):
                found.add((start, key))
        moved = {leaf: 1.3 * value + 0.37 for leaf, value in products.items()}
        if changes(target, base[target], {**leaves, **moved}, sizes, others):
            found.add(("x", key))
    return found


def value_of(expr, leaves, sizes, fixed, *, is_top=True):
    if expr in fixed and not is_top:
        return fixed[expr]
    if expr.op == "input":
        return leaves[expr]
    if expr.op == "constant":
        return np.float64(expr.value)
    if expr.op == "size":
        return np.float64(sizes[expr.label])
    return OPS[expr.op].meaning(*(value_of(a, leaves, sizes, fixed, is_top=False) for a in expr.args))


def changes(target, before, leaves, sizes, fixed):
    after = value_of(target, leaves, sizes, fixed)
    return bool(np.any(np.abs(np.asarray(after) - np.asarray(before)) > 1e-12))


@pytest.mark.parametrize("is_short", [False, True])
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_each_arrow_of_a_cell_is_a_change(cell, is_short):
    layer = layer_of(cell, hidden=8)
    subject = subject_of(layer, torch.zeros(1, 1, 2), False)
    builder = _Builder(subject, is_short=is_short)
    graph = builder.made()
    inner = {(a, b) for a, b in graph.edges if not b.startswith(("new/", "out"))}
    assert inner == arrows_by_numbers(builder)
    ends = dict(zip([f"new/{state}" for state in cell.states], subject.step.results[1:], strict=True))
    keys = {**builder.keys, **{leaf: f"s/{leaf.label}" for leaf in subject.step.of_role("state")}}
    for end, expr in ends.items():
        assert (keys[expr], end) in graph.edges


def test_a_cell_picture_draws_exactly_its_graph():
    for cell in CELLS:
        facts = cf.explain(layer_of(cell))
        drawing = facts.picture("cell").drawing
        assert [(w.source, w.target) for w in drawing.wires] == list(facts.graph.edges)
        assert {box.key for box in drawing.boxes} == {node.key for node in facts.graph.nodes}


def downstream(graph, key):
    found, stack = set(), [key]
    while stack:
        for a, b in graph.edges:
            if a == stack[-1] and b not in found:
                found.add(b)
                stack.append(b)
                break
        else:
            stack.pop()
    return found


def moved_names(layer, x, hx, weight, rows):
    """The named values of the first step that change with some rows of a weight."""
    with torch.no_grad():
        before = cf.explain(layer, x, hx).trace[0]
        getattr(layer, weight)[rows] += 0.5
        after = cf.explain(layer, x, hx).trace[0]
        getattr(layer, weight)[rows] -= 0.5
    pairs = zip(before.series, after.series, strict=True)
    return {a.name for a, b in pairs if [row[0] for row in a.units] != [row[0] for row in b.units]}


@pytest.mark.parametrize("name", ["lstm", "gru", "gru_reset_before", "ran", "mgu", "peephole_lstm"])
def test_rows_and_names_belong_together(name):
    """A box says which rows it reads: with them, the values behind it change, and no others."""
    torch.manual_seed(1)
    layer = cf.cells.CELLS[name].layer(3, 4)
    count = len(layer.cell.states)
    x, hx = torch.randn(1, 1, 3), tuple(torch.randn(1, 1, 4) for _ in range(count))
    hx = hx if count > 1 else hx[0]
    facts = cf.explain(layer, x, hx)
    names = {node.key: node.lines[0] for node in facts.graph.nodes}
    seen = 0
    for node in facts.graph.nodes:
        if node.rows and ":" in node.rows and "hh" not in node.rows:
            start, end = (int(n) for n in node.rows.removeprefix("ih ").split(":"))
            weight = "weight_ih_l0" if "x" in node.lines[-1].split() else "weight_hh_l0"
            behind = {names[key] for key in downstream(facts.graph, node.key)}
            known = {series.name for series in facts.trace[0].series}
            moved = moved_names(layer, x, hx, weight, slice(start, end))
            assert moved == behind & known, node
            seen += 1
    assert seen >= 2


def test_swapped_labels_are_seen():
    """Planted: the rows of two gates exchanged."""
    torch.manual_seed(1)
    layer = cf.LSTM(3, 4)
    x, hx = torch.randn(1, 1, 3), (torch.randn(1, 1, 4), torch.randn(1, 1, 4))
    graph = cf.explain(layer, x, hx).graph
    box = next(node for node in graph.nodes if "W_f x" in node.lines[0])
    assert box.rows == "4:8"
    assert "f" in moved_names(layer, x, hx, "weight_ih_l0", slice(4, 8))
    assert "f" not in moved_names(layer, x, hx, "weight_ih_l0", slice(0, 4))


def test_wiring_is_what_the_facts_hold():
    for L, D in STACKS:
        assert cf.explain(stack(torch.nn.GRU, L, D)).wiring == tuple(wiring(L, D))
    assert set(picture.PICTURES) == {"cell", "layer", "stack", "shapes", "gates", "ragged"}
