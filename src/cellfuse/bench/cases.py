"""The named cases: a cell and its sizes."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from cellfuse import cells
from cellfuse.errors import OptionError


@dataclass(frozen=True)
class BenchCase:
    """One cell at one size: T time steps, B sequences, I input features, H hidden units.

    form: "" for equal lengths; "ragged" for packed sequences of lengths from T/4 to T; "stream" for one
    time step a call, without gradients.
    """

    cell: str
    T: int
    B: int
    H: int
    form: str = ""

    @property
    def I(self) -> int:  # noqa: E743 - the letter of every shape
        """As many features as units, as in an inner layer."""
        return self.H

    @property
    def name(self) -> str:
        """What `cellfuse bench` calls it."""
        return f"{self.cell}/T{self.T}-B{self.B}-H{self.H}" + (f"-{self.form}" if self.form else "")

    @property
    def lengths(self) -> list[int]:
        """Of the sequences, longest first."""
        return [self.T - k * (self.T - self.T // 4) // max(1, self.B - 1) for k in range(self.B)]


# Streaming-like to large; every one has a known limit of the hardware in the kernels' design.
SHAPES = (
    (100, 1, 64),
    (100, 1, 256),
    (100, 32, 64),
    (100, 32, 128),
    (100, 32, 256),
    (100, 32, 512),
    (50, 64, 1024),
    (1000, 1, 128),
)
HEART = ("lstm", "gru", "rnn")
RAGGED = (100, 32, 128)
STREAM = (100, 1, 256)
OTHERS = (50, 16, 64)

# What a cell cannot be made without.
OPTIONS: dict[str, dict[str, int]] = {"projected_lstm": {"proj_size": 32}, "slstm": {"num_heads": 4}}

CASES: dict[str, BenchCase] = {
    case.name: case
    for case in [
        *(BenchCase(cell, *shape) for cell in HEART for shape in SHAPES),
        *(BenchCase(cell, *RAGGED, "ragged") for cell in HEART),
        *(BenchCase(cell, *STREAM, "stream") for cell in HEART),
        *(BenchCase(cell, *OTHERS) for cell in cells.CELLS),
    ]
}


def select(patterns: list[str]) -> list[BenchCase]:
    """The cases whose names match any of the patterns (`gru/*`, `*-H64`), in the table's order.

    Raises:
        OptionError: a pattern matches none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in CASES):
            raise OptionError(f"no case matches {pattern!r}; `cellfuse bench --list` shows all {len(CASES)}.")
    return [case for name, case in CASES.items() if any(fnmatchcase(name, p) for p in patterns)]
