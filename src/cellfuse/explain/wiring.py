"""Which box of the map feeds which: layers and directions, then the same over time. Draws nothing.

Keys: x/t the input, c/layer/direction/t a cell, start/k and h/k the states before and after, out/t the
output, with k = layer * directions + direction. Tests confirm every arrow by gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Arrow = tuple[str, str]


def wiring(num_layers: int, num_directions: int) -> list[Arrow]:
    """Every arrow of the map at one time step: in/0, c/layer/direction, h/k, out. A cell's arrow to itself
    goes to the next time step."""
    arrows = []
    for layer in range(num_layers):
        for direction in range(num_directions):
            here = f"c/{layer}/{direction}"
            below = [f"c/{layer - 1}/{d}" for d in range(num_directions)] if layer else ["in/0"]
            arrows += [(source, here) for source in below]
            arrows += [(here, here), (here, f"h/{layer * num_directions + direction}")]
            if layer == num_layers - 1:
                arrows.append((here, "out"))
    return arrows


def over_time(arrows: Iterable[Arrow], length: int, steps: Sequence[int] | None = None) -> list[Arrow]:
    """The arrows of every time step, or of some. The reverse direction goes from the last to the first."""
    entry = {source: target for source, target in arrows if target.startswith("h/")}
    steps = range(length) if steps is None else steps
    made = []
    for source, target in arrows:
        is_reverse = source.startswith("c/") and source.endswith("/1")
        first, last = (length - 1, 0) if is_reverse else (0, length - 1)
        if source == target:
            step = -1 if is_reverse else 1
            made.append((entry[source].replace("h/", "start/"), f"{source}/{first}"))
            made += [(f"{source}/{t - step}", f"{source}/{t}") for t in steps if 0 <= t - step < length]
        elif target.startswith("h/"):
            made.append((f"{source}/{last}", target))
        elif source == "in/0":
            made += [(f"x/{t}", f"{target}/{t}") for t in steps]
        else:
            made += [(f"{source}/{t}", f"{target}/{t}") for t in steps]
    return made


@dataclass(frozen=True)
class Gap:
    """What is not drawn: time steps or layers from `first` to `last`."""

    first: int
    last: int

    @property
    def count(self) -> int:
        """How many."""
        return self.last - self.first + 1


Shown = int | Gap


def columns(length: int, around: int | None = None) -> list[Shown]:
    """The time steps that are drawn: all of up to seven; else the first and the last, and those beside
    `around` if it is given."""
    if length <= 7:
        return list(range(length))
    if around is None:
        return [0, 1, 2, Gap(3, length - 3), length - 2, length - 1]
    middle = min(max(around, 3), length - 4)
    return [0, Gap(1, middle - 2), middle - 1, middle, middle + 1, Gap(middle + 2, length - 2), length - 1]


def layers(count: int) -> list[Shown]:
    """The layers that are drawn: all of up to four; else two, a gap, and the last."""
    if count <= 4:
        return list(range(count))
    return [0, 1, Gap(2, count - 2), count - 1]


def place_of(value: int, shown: Sequence[Shown]) -> Shown:
    """Where a time step or layer is drawn: itself, or the gap that holds it."""
    if value in shown:
        return value
    return next(gap for gap in shown if isinstance(gap, Gap) and gap.first <= value <= gap.last)
