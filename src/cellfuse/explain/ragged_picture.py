"""The picture of packed sequences: a row for each, padding hatched, the last states ringed."""

from __future__ import annotations

from itertools import pairwise

from cellfuse.explain.facts import Explanation
from cellfuse.explain.svg import SMALL, Box, Drawing, Line, Text, text_width
from cellfuse.explain.wiring import Gap, Shown
from cellfuse.explain.words import say

_SIDE, _ROW, _MOST = 34.0, 46.0, 8


def draw_ragged(facts: Explanation) -> Drawing:
    """Which steps are valid, and where the last state of each sequence is."""
    T, D = facts.sizes["T"], facts.sizes["D"]
    lengths = facts.lengths[:_MOST]
    drawing = Drawing(
        say("picture ragged", title=facts.title), say("picture ragged text", n=facts.sizes["S"])
    )
    x, shown = 0.0, _columns(T, lengths)
    for t in shown:
        width = 58.0 if isinstance(t, Gap) else max(_SIDE, text_width(f"t={t}", SMALL) + 8)
        head = say("box gap", n=t.count) if isinstance(t, Gap) else f"t={t}"
        drawing.texts.append(Text(x + width / 2, -12, head, SMALL, "middle", "note"))
        for b, length in enumerate(lengths):
            drawing.boxes.append(_step(t, b, length, D, x, width))
        x += width + 8
    top = (facts.sizes["L"] - 1) * D
    for b, length in enumerate(lengths):
        y = b * _ROW + _SIDE / 2
        drawing.texts.append(Text(-12, y, say("ragged row", b=b, n=length), anchor="end"))
        for place, code in enumerate(codes(facts, top, b, length)):
            drawing.texts.append(Text(x + 8, y + (place - (D - 1) / 2) * 16, code, SMALL, kind="note"))
    y = len(lengths) * _ROW + 6
    notes = [say("ragged forward")] + [say("ragged reverse")] * (D == 2) + [say("ragged padding")]
    if len(facts.lengths) > len(lengths):
        notes.append(say("ragged more", n=len(facts.lengths) - len(lengths)))
    for place, note in enumerate(notes):
        drawing.texts.append(Text(0, y + 18 * place, note, kind="note"))
    return drawing


def codes(facts: Explanation, top: int, b: int, length: int) -> list[str]:
    """Where the last states of sequence b are, as Python over h_n and the padded output."""
    if not facts.output_states:
        return []
    name, D = f"{facts.output_states[0]}_n", facts.sizes["D"]
    width = facts.tensor(name).shape[-1]
    features = f", :{width}" if D == 2 else ""
    made = [f"{name}[{top}, {b}] == padded[{length - 1}, {b}{features}]"]
    return [*made, f"{name}[{top + 1}, {b}] == padded[0, {b}, {width}:]"] if D == 2 else made


def _columns(T: int, lengths: tuple[int, ...]) -> list[Shown]:
    """All steps of up to 20; else the first, the ends of the sequences and the steps beside them."""
    if T <= 20:
        return list(range(T))
    wanted = sorted({0, 1, T - 1, *(n - 1 for n in lengths), *(n for n in lengths if n < T)})
    made: list[Shown] = [wanted[0]]
    for before, after in pairwise(wanted):
        if after - before > 1:
            made.append(Gap(before + 1, after - 1))
        made.append(after)
    return made


def _step(t: Shown, b: int, length: int, D: int, x: float, width: float) -> Box:
    first = t.first if isinstance(t, Gap) else t
    y = b * _ROW
    if first >= length:
        return Box(f"pad/{b}/{first}", x, y, width, _SIDE, (), "kpad", say("padded"))
    marks = ["→"] * (first == length - 1) + ["←"] * (first == 0 and D == 2)
    kind = {"→": "kh d0", "←": "kh d1", "": "kvalid"}[marks[0] if marks else ""]
    lines = (Line(" ".join(marks)),) if marks else (Line("…"),) if isinstance(t, Gap) else ()
    return Box(f"step/{b}/{first}", x, y, width, _SIDE, lines, kind, say("ragged step", b=b, t=first))
