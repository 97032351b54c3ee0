"""The picture of one time step: what comes in at the left, what goes on at the right, its states straight."""

from __future__ import annotations

from itertools import pairwise

from cellfuse.explain.facts import CellNode, Explanation
from cellfuse.explain.layout import layered
from cellfuse.explain.step import letters_of
from cellfuse.explain.svg import SIZE, SMALL, Box, Drawing, Line, Text, Wire, widest
from cellfuse.explain.words import Words, listed, say, translated

_SHAPES = {"pointwise": "pill", "activation": "pill", "reduction": "hexagon", "choice": "hexagon"}
_FIRST = ("input", "state")


def draw_cell(facts: Explanation) -> Drawing:
    """The cell of a layer."""
    graph = facts.graph
    lines = {node.key: _lines(facts, node) for node in graph.nodes}
    sizes = {node.key: _size(node, lines[node.key]) for node in graph.nodes}
    sources = {node.key for node in graph.nodes if node.kind in _FIRST}
    reads: dict[str, set[str]] = {}
    for a, b in graph.edges:
        reads.setdefault(b, set()).add(a)
    early = sources | {n.key for n in graph.nodes
                       if n.kind == "product" and reads.get(n.key, set()) <= sources}  # fmt: skip
    used = {key for edge in graph.edges for key in edge}
    loose = [key for key in sizes if key not in used]
    edges = list(graph.edges)
    straight = {pair for path in graph.spines for pair in pairwise(path)}
    laid = layered({k: v for k, v in sizes.items() if k in used}, edges, graph.spines, early)
    title = say("picture cell", cell=facts.cell)
    drawing = Drawing(title, _described(facts))
    for node in graph.nodes:
        if node.key in used:
            (x, y), (width, height) = laid.centres[node.key], sizes[node.key]
            drawing.boxes.append(
                _box(facts, node, lines[node.key], x - width / 2, y - height / 2, width, height)
            )
    for (a, b), points in zip(edges, laid.routes, strict=True):
        drawing.wires.append(Wire(a, b, points, "spine" if (a, b) in straight else "", is_curved=True))
    bottom = max((box.y + box.height for box in drawing.boxes), default=0.0)
    for place, key in enumerate(loose):  # a state that the step does not read, a result that is a number
        node = next(node for node in graph.nodes if node.key == key)
        y = bottom + 16 + 40 * place
        drawing.boxes.append(_box(facts, node, lines[key], 0, y, *sizes[key]))
        bottom = max(bottom, y)
    _legend(facts, drawing)
    return drawing


def _lines(facts: Explanation, node: CellNode) -> tuple[Line, ...]:
    made = [Line(text) for text in node.lines]
    if node.rows:
        made.append(
            Line(node.rows if node.rows.startswith("[") else say("picture rows", rows=node.rows), True)
        )
    elif node.kind in _FIRST:
        key = "picture x" if node.kind == "input" else "picture before"
        made += [Line(say(key), True), Line(_shape(facts, node), True)]
    elif node.kind.startswith("new"):
        made += [Line(say("picture after"), True)]
        made += [Line(say("picture also output"), True)] if node.kind == "new output" else []
        made += [Line(_shape(facts, node), True)]
    elif node.kind == "output":
        made += [Line(say("picture output only"), True), Line(_shape(facts, node), True)]
    return tuple(made)


def _shape(facts: Explanation, node: CellNode) -> str:
    """The numbers of what comes in or goes out at one time step."""
    sizes = facts.sizes
    batch = [] if facts.form == "unbatched" else [sizes["B"]]
    if node.kind == "input":
        return str([*batch, sizes["I"]])
    ending = "1" if facts.kind == "step" else "n"
    if node.kind == "output":
        return str([*batch, facts.tensor("output").shape[-1] // sizes["D"]])
    return str([*batch, facts.tensor(f"{node.key.rpartition('/')[2]}_{ending}").shape[-1]])


def _size(node: CellNode, lines: tuple[Line, ...]) -> tuple[float, float]:
    width = max(widest(line.text, line.size) for line in lines)
    height = sum(line.size + 3 for line in lines) + 9
    is_sign = node.kind == "pointwise" and len(node.lines) == 1 and len(node.lines[0]) == 1
    return (26.0, 26.0) if is_sign else (max(width + (22 if node.kind in _SHAPES else 16), height), height)


def _box(
    facts: Explanation,
    node: CellNode,
    lines: tuple[Line, ...],
    x: float,
    y: float,
    width: float,
    height: float,
) -> Box:
    kind = {"state": "kstate", "input": "kstate", "new": "kend", "output": "kend kout"}.get(
        node.kind, f"k{node.kind}"
    )
    kind = "kend kout" if node.kind == "new output" else kind
    data = (("e", str(node.equation)),) if node.equation >= 0 else ()
    return Box(
        node.key, x, y, width, height, lines, kind, _title(facts, node), _SHAPES.get(node.kind, "rect"), data
    )


def _title(facts: Explanation, node: CellNode) -> Words:
    """The whole expression, and what the gate is."""
    if node.kind in _FIRST or node.kind.startswith("new") or node.kind == "output":
        key = {"input": "picture x", "state": "picture before", "output": "picture output only"}
        words = say(key.get(node.kind, "picture after"))
        return Words(f"{node.title}: {words.en}", f"{node.title}：{words.zh}")
    meaning = dict(facts.gates).get(node.lines[0])
    if meaning is None or len(node.lines) < 2:
        return Words(node.title, node.title)
    words = translated(meaning)
    return Words(f"{words.en}: {node.title}", f"{words.zh}：{node.title}")


def _described(facts: Explanation) -> Words:
    """The equations, for who cannot see the picture."""
    listing = "; ".join(f"{e.left} = {e.right}" for e in facts.equations)
    return say("picture cell text", equations=listing)


def _legend(facts: Explanation, drawing: Drawing) -> None:
    left, _, _, bottom = drawing.bounds()
    left, y = left + drawing.margin, bottom + 4
    notes = [say("legend spine")] if facts.graph.spines else []
    notes.append(say("legend step"))
    letters = letters_of(facts.tensors)
    if letters:
        listing = Words(", ".join(words.en for words in letters), "，".join(words.zh for words in letters))
        notes.append(say("legend letters", letters=listing))
    notes += _biases(facts)
    if facts.deviation:
        notes.append(say("legend deviation", text=translated(facts.deviation)))
    for note in notes:
        drawing.texts.append(Text(left, y, note, SMALL, kind="note"))
        y += SIZE + 4


def _biases(facts: Explanation) -> list[Words]:
    """Whether the two biases of each gate are added up."""
    sums = [node.title for node in facts.graph.nodes if node.kind == "product"]
    gates = [gate for gate, _ in facts.gates if any(f"b_{gate}" in title for title in sums)]
    gates = [gate for gate in gates if any(f"d_{gate}" in title for title in sums)]
    apart = [g for g in gates if not any(f"b_{g}" in title and f"d_{g}" in title for title in sums)]
    if apart:
        return [say("legend biases apart", gates=listed(apart))]
    return [say("legend biases one")] if gates else []
