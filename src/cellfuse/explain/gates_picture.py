"""The picture of the values inside the step over time: units from top to bottom, time to the right."""

from __future__ import annotations

import math

from cellfuse.explain.facts import Explanation, Series, Trace
from cellfuse.explain.palette import heat
from cellfuse.explain.pixels import data_address
from cellfuse.explain.svg import SMALL, Box, Drawing, Image, Text
from cellfuse.explain.words import Words, say

_WIDTH, _APART, _TEXT = 370.0, 40.0, 38.0


def draw_gates(facts: Explanation, *, has_pixels: bool = True) -> Drawing:
    """Heat maps of every named value. Without pixels a script fills them in."""
    what = say("yours") if facts.was_given_input else say("random")
    drawing = Drawing(say("picture gates", title=facts.title, what=what), say("picture gates text"))
    y = 0.0
    for place, trace in enumerate(facts.trace):
        y = _column(facts, drawing, trace, place * (_WIDTH + _APART), has_pixels)
    _scale(drawing, y + 8)
    return drawing


def quantised(series: Series) -> tuple[list[bytes], float]:
    """Rows of 0 to 255, and the value of 255: 1 for gates; other values lie between it and its negative.

    A column without a valid step is 0.
    """
    if series.kind == "gate":
        return [bytes(map(_level, row)) for row in series.units], 1.0
    known = [abs(v) for row in series.units for v in row if v is not None and math.isfinite(v)]
    high = max([*known, 1e-6])
    rows = [[None if v is None else 0.5 + v / (2 * high) for v in row] for row in series.units]
    return [bytes(map(_level, row)) for row in rows], high


def _level(value: float | None) -> int:
    if value is None or math.isnan(value):
        return 0
    return round(255 * min(max(value, 0.0), 1.0))


def _column(facts: Explanation, drawing: Drawing, trace: Trace, x: float, has_pixels: bool) -> float:
    """The heat maps of one layer and direction; returns the lower edge."""
    head = say("gates lane", layer=trace.layer, way=say(f"way {trace.direction}"))
    drawing.texts.append(Text(x, 0.0, head, kind="heading"))
    y, meanings = 20.0, {equation.left: equation for equation in facts.equations}
    for series in trace.series:
        height = max(5.0 * len(series.units), 30.0)
        said = meanings[series.name]
        title = Words(f"{series.name}  {said.en}".strip(), f"{series.name}  {said.zh}".strip())
        drawing.texts.append(Text(x, y + 6, title))
        drawing.texts.append(Text(x, y + 22, _statistics(series), SMALL, kind="note"))
        rows, _ = quantised(series)
        key = f"heat/{trace.layer}/{trace.direction}/{series.name}"
        address = data_address(rows, heat(series.kind)) if has_pixels else ""
        drawing.images.append(Image(key, x, y + _TEXT - 6, _WIDTH, height, address, title))
        _padding(drawing, trace, x, y + _TEXT - 6, height)
        y += _TEXT + height + 8
    last = facts.sizes["T"] - 1
    drawing.texts.append(Text(x, y, "t=0", SMALL, kind="note"))
    drawing.texts.append(Text(x + _WIDTH, y, f"t={last}", SMALL, "end", kind="note"))
    return y


def _statistics(series: Series) -> Words:
    """Mean, saturation and half-life of a gate; mean and range of another value."""
    if series.kind == "value":
        _, high = quantised(series)
        return say("gates value", mean=_number(series.mean), high=f"{high:.3g}")
    words = say("gates gate", mean=_number(series.mean), low=f"{series.low:.0%}", high=f"{series.high:.0%}")
    if not series.keeps:
        return words
    life = series.half_life
    steps = f"{life:.{0 if life >= 10 else 1}f}" if math.isfinite(life) else "∞"
    rest = say("gates half-life", state=series.keeps, n=steps)
    return Words(f"{words.en} · {rest.en}", f"{words.zh} · {rest.zh}")


def _number(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def _padding(drawing: Drawing, trace: Trace, x: float, y: float, height: float) -> None:
    """Hatches the columns after the end of the sequence."""
    valid = sum(start < trace.length for start in trace.starts)
    if valid < len(trace.starts):
        left = x + _WIDTH * valid / len(trace.starts)
        drawing.boxes.append(Box("", left, y, x + _WIDTH - left, height, (), "kpad", say("padded")))


def _scale(drawing: Drawing, y: float) -> None:
    """What the colours mean."""
    ramp = [bytes(range(256))]
    for place, (kind, low, high) in enumerate((("gate", "0", "1"), ("value", "−", "+"))):
        x = place * 180.0
        drawing.texts.append(Text(x, y + 14, low, SMALL, kind="note"))
        address = data_address(ramp, heat(kind))
        drawing.images.append(Image(f"scale/{kind}", x + 12, y + 8, 90, 12, address, say(f"scale {kind}")))
        drawing.texts.append(Text(x + 108, y + 14, high, SMALL, kind="note"))
    drawing.texts.append(Text(0, y + 36, say("gates note"), SMALL, kind="note"))
