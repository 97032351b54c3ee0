"""The picture of the layers over time: a lane for every layer and direction, states at its ends.

Every wire is straight up, or along its lane; a box of a reverse lane stands to the right of the forward
one below it, so that wires cross but never run over one another.
"""

from __future__ import annotations

from collections.abc import Sequence

from cellfuse.explain.facts import Explanation
from cellfuse.explain.step import state_words
from cellfuse.explain.svg import SIZE, SMALL, Box, Drawing, Line, Text, Wire, text_width, widest
from cellfuse.explain.wiring import Gap, Shown, columns, layers, over_time, place_of
from cellfuse.explain.words import Words, listed, say

_CELL, _HEIGHT, _BETWEEN = 62.0, 38.0, 20.0
_HALF = 19.0


def draw_stack(facts: Explanation, around: int | None = None) -> Drawing:
    """All layers. `around`: a time step whose neighbours are drawn where not all are."""
    sizes = facts.sizes
    names = listed([f"{state}_n" for state in facts.states])
    description = say(
        "picture stack text", input=list(facts.tensor("input").shape),
        output=list(facts.tensor("output").shape), names=names,
        states=list(facts.tensor(f"{facts.states[0]}_n").shape),
    )  # fmt: skip
    drawing = Drawing(say("picture stack", title=facts.title), description)
    return _Map(facts, drawing, layers(sizes["L"]), columns(sizes["T"], around)).made()


def draw_layer(facts: Explanation) -> Drawing:
    """The last layer alone."""
    last = facts.sizes["L"] - 1
    title = say("picture layer", layer=last, title=facts.title)
    return _Map(facts, Drawing(title, title), [last], columns(facts.sizes["T"])).made()


def _hidden(gap: Gap) -> Words:
    """What a gap between layers says."""
    return say("box layers", n=gap.count, first=gap.first, last=gap.last)


class _Map:
    """Places boxes from bottom to top, then draws the arrows of the wiring between them."""

    def __init__(
        self, facts: Explanation, drawing: Drawing, shown: Sequence[Shown], times: Sequence[Shown]
    ) -> None:
        self.facts, self.drawing, self.shown, self.times = facts, drawing, shown, times
        self.T, self.D, self.L = (facts.sizes[letter] for letter in "TDL")
        self.width = facts.sizes["P"] or facts.sizes["H"]
        self.batch = [] if facts.form == "unbatched" else [facts.sizes["B"]]
        self.state = str(list(facts.tensor(f"{facts.states[0]}_n").shape[1:]))
        self.cell = max(_CELL, text_width(self.state, SMALL) + 10)
        shapes = [str([*self.batch, n]) for n in (facts.sizes["I"], self.D * self.width)]
        labels = [text_width(f"output[{self.T - 1}]"), *(text_width(shape, SMALL) for shape in shapes)]
        self.bar = max(2 * self.cell + 8 if self.D == 2 else 0, max(labels) + 16)
        self.start = 15.0 * len(facts.states) + 9  # height of the states before the first step
        self.start_width = text_width(f"{facts.states[0]}_0[{self.L * self.D - 1}]") + 14
        self.rise = max(_HEIGHT, self.start) / 2 + 12  # from a reverse lane to its last state's way home
        self.lane_height = max(78.0, self.start + 32)
        self.boxes: dict[str, Box] = {}
        self.lanes: dict[tuple[int, int], float] = {}
        self.x: dict[Shown, float] = {}
        x = 0.0
        for t in times:
            pitch = (self.bar if isinstance(t, int) else 58) + _BETWEEN
            self.x[t] = x + pitch / 2
            x += pitch
        gaps = [widest(_hidden(layer)) + 20 for layer in shown if isinstance(layer, Gap)]
        self.right = max([x, *gaps])

    def made(self) -> Drawing:
        y = self._bottom()
        for layer in self.shown:
            y = self._gap_of_layers(layer, y) if isinstance(layer, Gap) else self._layer(layer, y)
        self._racks()
        self._arrows()
        self.drawing.boxes[:0] = self.boxes.values()
        self._legend()
        return self.drawing

    def _add(self, key: str, centre: tuple[float, float], size: tuple[float, float], lines: list[Line],
             kind: str, title: Words) -> None:  # fmt: skip
        (x, y), (width, height) = centre, size
        self.boxes[key] = Box(key, x - width / 2, y - height / 2, width, height, tuple(lines), kind, title)

    def _offset(self, direction: int) -> float:
        """Where a direction's boxes stand in their column."""
        return 0.0 if self.D == 1 else (direction - 0.5) * (self.cell + 8)

    def _bottom(self) -> float:
        """What the lowest layer reads; returns the upper edge."""
        first = self.shown[0]
        assert isinstance(first, int)
        features = self.D * self.width if first else self.facts.sizes["I"]
        shape = [*self.batch, features]
        for t, x in self.x.items():
            if isinstance(t, Gap):
                self._gap(f"x/{t.first}-", t, (x, 0.0))
                continue
            title = say("box x", t=t, axes=", ".join("BI" if self.batch else "I"), shape=shape)
            lines: list[Line] = [Line(f"x[{t}]"), Line(str(shape), True)]
            key = f"x/{t}"
            if first:
                lines[0] = Line(say("box below", layer=first - 1))
                title = say("box join", layer=first - 1, t=t, shape=shape)
                key = self._source(first - 1, 0, t)
            self._add(key, (x, 0.0), (self.bar, 36.0), lines, "kx", title)
        return -18.0

    def _gap(self, key: str, gap: Gap, centre: tuple[float, float]) -> None:
        lines = [Line("…"), Line(say("box gap", n=gap.count), True)]
        self._add(key, centre, (58.0, 36.0), lines, "kgap", say("box gap title", n=gap.count))

    def _source(self, layer: int, direction: int, t: Shown) -> str:
        """What stands for a cell's output below the next layer: the joined box if there are two."""
        time = f"{t.first}-" if isinstance(t, Gap) else t
        return f"join/{layer}/{time}" if self.D == 2 else f"c/{layer}/{direction}/{time}"

    def _layer(self, layer: int, bottom: float) -> float:
        for direction in range(self.D):
            y = bottom - 22 - _HEIGHT / 2 - 10 - direction * self.lane_height
            self.lanes[layer, direction] = y
            for t, x in self.x.items():
                if isinstance(t, Gap):
                    key = f"c/{layer}/{direction}/{t.first}-"
                    title = say("box gap title", n=t.count)
                    self._add(key, (x, y), (30.0, 18.0), [Line("…")], f"kgap d{direction}", title)
                    continue
                title = say("box cell", layer=layer, way=say(f"way {direction}"), t=t,
                            cell=self.facts.cell, shape=self.state)  # fmt: skip
                lines = [Line(f"t={t}"), Line(self.state, True)]
                place = (x + self._offset(direction), y)
                self._add(
                    f"c/{layer}/{direction}/{t}",
                    place,
                    (self.cell, _HEIGHT),
                    lines,
                    f"kc{layer} kcell d{direction}",
                    title,
                )
            self._label(layer, direction, y)
        top = self.lanes[layer, self.D - 1]
        top -= self.rise + 20 if self.D == 2 else _HEIGHT / 2
        if layer == self.L - 1:
            return self._outputs(top if self.D == 2 else top - 34)
        return self._joins(layer, top) if self.D == 2 else top

    def _label(self, layer: int, direction: int, y: float) -> None:
        text = say("lane", layer=layer, sign="→←"[direction])
        x = -32.0 - self.start_width if direction == 0 else -36.0
        self.drawing.texts.append(Text(x, y - (0 if direction == 0 else 14), text, SIZE, "end", "heading"))
        if layer and self.facts.options["dropout"] and direction == 0:
            words = say("sieve", p=f"{self.facts.options['dropout']:g}")
            self.drawing.texts.append(Text(x, y + 18, words, SMALL, "end", "note"))

    def _halves(self, key: str, x: float, bottom: float, t: int) -> None:
        """Which half of the features is which direction's."""
        for direction in range(2):
            part = f"{direction * self.width}:{(direction + 1) * self.width}"
            title = say("box half", way=say(f"way {direction}"), part=part, t=t)
            centre = (x + (direction - 0.5) * self.bar / 2, bottom - _HALF / 2)
            text = f"{'→←'[direction]} {self.width}"
            self._add(
                f"{key}/{direction}",
                centre,
                (self.bar / 2, _HALF),
                [Line(text, True)],
                f"khalf d{direction}",
                title,
            )

    def _joins(self, layer: int, bottom: float) -> float:
        """Both directions' outputs, joined."""
        shape = [*self.batch, 2 * self.width]
        for t, x in self.x.items():
            if isinstance(t, int):
                key = f"join/{layer}/{t}"
                self._halves(key, x, bottom, t)
                title = say("box join", layer=layer, t=t, shape=shape)
                self._add(
                    key, (x, bottom - _HALF - 10), (self.bar, 20.0), [Line(str(shape), True)], "kjoin", title
                )
        return bottom - _HALF - 20

    def _outputs(self, bottom: float) -> float:
        shape = [*self.batch, self.D * self.width]
        base = bottom - (_HALF if self.D == 2 else 0)
        for t, x in self.x.items():
            if isinstance(t, Gap):
                self._gap(f"out/{t.first}-", t, (x, base - 18))
                continue
            if self.D == 2:
                self._halves(f"out/{t}", x, bottom, t)
            lines = [Line(f"output[{t}]"), Line(str(shape), True)]
            self._add(
                f"out/{t}", (x, base - 18), (self.bar, 36.0), lines, "kout", say("box out", t=t, shape=shape)
            )
        return base - 36

    def _gap_of_layers(self, gap: Gap, bottom: float) -> float:
        y = bottom - 44
        text = _hidden(gap)
        self._add("gap", (self.right / 2, y), (self.right, 34.0), [Line(text)], "kgap", text)
        self.lanes[gap.first, 0] = y
        return y - 17

    def _racks(self) -> None:
        """The last states, and the states before the first step."""
        states = self.facts.states
        room = max(text_width(f"{state}_n[{self.L * self.D - 1}]") for state in states) + 14
        shapes = [str(list(self.facts.tensor(f"{state}_n").shape[1:])) for state in states]
        room = max([room, *(text_width(shape, SMALL) + 10 for shape in shapes)])
        left = self.right + (self.start_width + 46 if self.D == 2 else 30)
        for (layer, direction), y in self.lanes.items():
            k = layer * self.D + direction
            if any(isinstance(gap, Gap) and gap.first == layer for gap in self.shown):
                self._rack_of_gap(layer, left, room, y)
                continue
            width = (room + 6) * len(states) + 6
            self._add(f"h/{k}", (left + width / 2, y), (width, 48.0), [], f"kframe d{direction}",
                      self._final(states[0], layer, direction))  # fmt: skip
            for place, state in enumerate(states):
                x = left + 6 + place * (room + 6) + room / 2
                lines = [Line(f"{state}_n[{k}]"), Line(shapes[place], True)]
                kind = f"kh d{direction}" if place == 0 else "kc"
                self._add(
                    f"end/{state}/{k}",
                    (x, y),
                    (room, 36.0),
                    lines,
                    kind,
                    self._final(state, layer, direction),
                )
            if self.D == 2:
                text = f"k = {layer}·2 + {direction}"
                self.drawing.texts.append(Text(left + width / 2, y + 32, text, SMALL, "middle", kind="note"))
            self._start(k, layer, direction, y)

    def _final(self, state: str, layer: int, direction: int) -> Words:
        return say(
            "box final", name=f"{state}_n", k=layer * self.D + direction, state=state_words(state),
            layer=layer, way=say(f"way {direction}"), t=0 if direction else self.T - 1,
            shape=list(self.facts.tensor(f"{state}_n").shape[1:]),
        )  # fmt: skip

    def _rack_of_gap(self, layer: int, left: float, room: float, y: float) -> None:
        gap = next(gap for gap in self.shown if isinstance(gap, Gap) and gap.first == layer)
        first, last = gap.first * self.D, gap.last * self.D + self.D - 1
        lines = [Line(f"{state}_n[{first}:{last + 1}]") for state in self.facts.states]
        width = max(widest(line.text) for line in lines) + 14
        text = _hidden(gap)
        self._add("h/gap", (left + width / 2, y), (width, 15.0 * len(lines) + 12), lines, "kgap", text)

    def _start(self, k: int, layer: int, direction: int, y: float) -> None:
        width = self.start_width
        x = self.right + 22 + width / 2 if direction else -16.0 - width / 2
        lines = [Line(f"{state}_0[{k}]") for state in self.facts.states]
        title = say("box start", layer=layer, way=say(f"way {direction}"), t=self.T - 1 if direction else 0)
        self._add(f"start/{k}", (x, y), (width, self.start), lines, f"kstart d{direction}", title)

    def _arrows(self) -> None:
        """Every arrow of the wiring whose ends are drawn; those inside one gap are not."""
        done = set()
        near = {t + side for t in self.times if isinstance(t, int) for side in (-1, 0, 1)}
        steps = sorted(near & set(range(self.T)))
        for source, target in over_time(self.facts.wiring, self.T, steps):
            if self._is_below(target):
                continue
            for pair in self._drawn(source, target):
                if pair not in done and self._is_drawn(*pair):
                    done.add(pair)
                    self._arrow(*pair)

    def _is_below(self, key: str) -> bool:
        """Whether a key belongs to a layer under the lowest one shown: only its output is drawn."""
        kind, *rest = key.split("/")
        layer = int(rest[0]) if kind == "c" else int(rest[0]) // self.D if kind == "h" else self.L
        return layer < self.shown[0]  # type: ignore[operator]

    def _is_drawn(self, source: str, target: str) -> bool:
        """Whether both ends are there, and not both out of sight in the same gap."""
        if source == target or not {source, target} <= set(self.boxes):
            return False
        is_upwards = source.split("/")[:-1] != target.split("/")[:-1]
        return not (is_upwards and (source.endswith("-") or target.endswith("-")))

    def _drawn(self, source: str, target: str) -> list[tuple[str, str]]:
        """An arrow of the wiring as the arrows that stand for it: through the joined box if there is one."""
        a, b = self._place(source), self._place(target)
        kinds = (source[0], target.partition("/")[0])
        if kinds == ("c", "out") and self.D == 2:
            return [(a, f"{b}/{source.split('/')[2]}")]
        if kinds != ("c", "c") or source.split("/")[1] == target.split("/")[1] or self.D == 1 or a == "gap":
            return [(a, b)]
        layer, direction, t = source.split("/")[1:]
        join = f"join/{layer}/{t}"
        return [(a, f"{join}/{direction}"), (join, b)]

    def _place(self, key: str) -> str:
        """The box that stands for a key: its own, or that of the gap it lies in."""
        kind, *rest = key.split("/")
        if kind == "c" and self._is_hidden(int(rest[0])):
            return "gap"
        if kind == "h" and self._is_hidden(int(rest[0]) // self.D):
            return "h/gap"
        if kind in ("h", "start"):
            return key
        t = place_of(int(rest[-1]), self.times)
        return key if isinstance(t, int) else "/".join([kind, *rest[:-1], f"{t.first}-"])

    def _is_hidden(self, layer: int) -> bool:
        return any(isinstance(gap, Gap) and gap.first <= layer <= gap.last for gap in self.shown)

    def _arrow(self, source: str, target: str) -> None:
        a, b = self.boxes[source], self.boxes[target]
        places = [key.split("/") for key in (target, source)]
        direction = next((int(p[2]) for p in places if p[0] == "c"), 0)
        if {source, target} & {"gap"}:
            self._arrow_of_gap(source, target, a, b)
            return
        (ax, ay), (bx, by) = a.centre, b.centre
        points: tuple[tuple[float, float], ...]
        if abs(ay - by) > 1:  # upwards
            x = bx if target.startswith("c/") else ax
            points = ((x, a.y), (x, b.y + b.height))
        elif target.startswith("h/") and direction == 1:
            top, edge = ay - self.rise, b.x - 12
            points = ((a.x, ay), (-22.0, ay), (-22.0, top), (edge, top), (edge, by - 12), (b.x, by - 12))
        elif ax < bx:
            points = ((a.x + a.width, ay), (b.x, by))
        else:
            points = ((a.x, ay), (b.x + b.width, by))
        self.drawing.wires.append(Wire(source, target, points, f"d{direction}"))

    def _arrow_of_gap(self, source: str, target: str, a: Box, b: Box) -> None:
        """To and from the layers that are not drawn."""
        if target == "h/gap":
            points = ((a.x + a.width, a.centre[1]), (b.x, b.centre[1]))
        else:
            x = a.centre[0] if target == "gap" else b.centre[0]
            points = ((x, a.y), (x, b.y + b.height))
        kind = f"d{target.split('/')[2]}" if source == "gap" and target.startswith("c/") else ""
        self.drawing.wires.append(Wire(source, target, points, kind))

    def _legend(self) -> None:
        _, _, _, bottom = self.drawing.bounds()
        notes = [say("legend solid")]
        if self.D == 2:
            notes.append(say("legend dashed", last=self.T - 1))
            notes.append(say("legend k", D=2))
        notes.append(say("legend ends"))
        if self.L == 1 or self.facts.options["dropout"]:
            notes.append(say("legend dropout nowhere" if self.L == 1 else "legend dropout between"))
        if not self.facts.options["has_hx"]:
            claim = self.facts.claim("initial")
            notes.append(Words(claim.en, claim.zh))
        if self.facts.form == "packed" and self.T > 1:
            notes.append(say("map packed", last=self.T - 1))
            notes += [say("map packed reverse")] if self.D == 2 else []
        for place, note in enumerate(notes):
            self.drawing.texts.append(Text(0, bottom + 4 + 18 * place, note, kind="note"))
