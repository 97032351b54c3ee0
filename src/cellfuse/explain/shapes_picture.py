"""The picture of the shapes: axes of every tensor, what batch_first swaps, the gates' rows in the weights."""

from __future__ import annotations

from cellfuse.explain.facts import Explanation, TensorFact
from cellfuse.explain.svg import SMALL, Box, Drawing, Line, Text, Wire, widest
from cellfuse.explain.words import Words, say

_CHIP, _HIGH, _APART = 6.0, 36.0, 44.0
_SIGNS = {"T": "axis T", "B": "axis B", "I": "axis I", "S": "axis S", "H": "axis H", "P": "axis P"}


def draw_shapes(facts: Explanation) -> Drawing:
    """Axes of input, output and states above, weights below."""
    drawing = Drawing(say("picture shapes", title=facts.title), _described(facts))
    y = _axes(facts, drawing)
    _weights(facts, drawing, y + 34)
    return drawing


def _described(facts: Explanation) -> Words:
    """All shapes in a sentence."""
    named = [fact for fact in facts.tensors if fact.role in ("input", "output", "state")]
    listing = ", ".join(f"{f.name} [{', '.join(f.letters)}] = {list(f.shape)}" for f in named)
    return Words(listing, listing)


def _axes(facts: Explanation, drawing: Drawing) -> float:
    """Input, output and states as rows of axes, as they are and with the other batch_first."""
    has_two = facts.form == "batched" and facts.kind == "layer"
    rows = (False, True) if has_two else (facts.options["batch_first"],)
    x = 0.0
    for fact in facts.tensors:
        if fact.role not in ("input", "initial", "output", "state"):
            continue
        is_swapped = has_two and fact.role in ("input", "output")
        drawing.texts.append(Text(x, 0, fact.name, kind="heading"))
        right = x
        for place, is_first in enumerate(rows):
            pairs = list(zip(fact.letters, fact.shape, strict=True))
            if is_swapped and is_first != facts.options["batch_first"]:
                pairs[0], pairs[1] = pairs[1], pairs[0]
            right = max(right, _chips(drawing, fact, pairs, x, 22.0 + 100.0 * place, place))
        if has_two:
            _links(drawing, fact, is_swapped)
            words = say("shape swapped" if is_swapped else "shape same")
            drawing.texts.append(Text(x, 174, words, SMALL, kind="note"))
            right = max(right, x + widest(words, SMALL))
        x = right + _APART
    if not has_two:
        drawing.texts.append(
            Text(0, 78, say(f"shape {facts.form if facts.kind == 'layer' else 'step'}"), kind="note")
        )
        return 84.0
    for place, is_first in enumerate(rows):
        is_own = is_first == facts.options["batch_first"]
        words = say("shape own" if is_own else "shape other", value=is_first)
        drawing.texts.append(
            Text(-16, 40 + 100 * place, words, anchor="end", kind="heading" if is_own else "note")
        )
    return 180.0


def _chips(
    drawing: Drawing, fact: TensorFact, pairs: list[tuple[str, int]], x: float, y: float, row: int
) -> float:
    """One axis after the other; returns the right edge."""
    for place, (letters, size) in enumerate(pairs):
        lines = (Line(f"{letters} = {size}"),)
        width = widest(lines[0].text) + 14
        kind = "kaxis" + (" kswap" if letters in ("T", "B") else "")
        key = f"axis/{fact.name}/{row}/{letters}"
        words = _SIGNS.get(letters, "axis features" if place == len(pairs) - 1 else "axis stack")
        drawing.boxes.append(Box(key, x, y, width, _HIGH, lines, kind, say(words)))
        x += width + _CHIP
    return x - _CHIP


def _links(drawing: Drawing, fact: TensorFact, is_swapped: bool) -> None:
    """The same axis in both orders, joined."""
    boxes = {box.key: box for box in drawing.boxes}
    for letters in fact.letters:
        a, b = (boxes[f"axis/{fact.name}/{row}/{letters}"] for row in (0, 1))
        kind = "open spine" if is_swapped and letters in ("T", "B") else "open dim"
        points = ((a.centre[0], a.y + _HIGH), (b.centre[0], b.y))
        drawing.wires.append(Wire(a.key, b.key, points, kind))


def _weights(facts: Explanation, drawing: Drawing, top: float) -> None:
    """The parameters of the first two layers, one block of rows for each gate."""
    drawing.texts.append(Text(0, top, say("shape weights"), kind="heading"))
    shown = [
        fact for fact in facts.tensors if fact.role in ("parameter", "constant") and _is_shown(facts, fact)
    ]
    x, H = 0.0, facts.sizes["H"]
    tallest = max([len(fact.rows) for fact in shown] + [1])
    for fact in shown:
        head = str(list(fact.shape))
        rows = fact.rows or ("",)
        texts = [f"{n * H}:{(n + 1) * H} {gate}" if gate else " " for n, gate in enumerate(rows)]
        width = max(widest(fact.name, SMALL), widest(head, SMALL), *(widest(t, SMALL) + 14 for t in texts))
        drawing.texts.append(Text(x + width / 2, top + 22, fact.name, SMALL, "middle"))
        drawing.texts.append(Text(x + width / 2, top + 36, head, SMALL, "middle", "note"))
        title = Words(f"{fact.name} {head}: {fact.en}", f"{fact.name} {head}：{fact.zh}")
        for place, text in enumerate(texts):
            y, lines = top + 48 + 26 * place, (Line(text, True),) if text.strip() else ()
            key = f"rows/{fact.name}/{rows[place] or 0}"
            drawing.boxes.append(Box(key, x, y, width, 26, lines, "kproduct", title))
        x += width + 16
    hidden = sum(fact.role in ("parameter", "constant") for fact in facts.tensors) - len(shown)
    if hidden:
        y = top + 48 + 26 * tallest + 14
        drawing.texts.append(Text(0, y, say("shape more", n=hidden), kind="note"))


def _is_shown(facts: Explanation, fact: TensorFact) -> bool:
    """Layer 0 and, of layer 1, what is wider there; the reverse direction's are the same."""
    return facts.kind == "step" or fact.name.endswith("_l0") or fact.name == "weight_ih_l1"
