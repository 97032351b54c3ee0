"""The named cases: a cell, its sizes, and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from cellfuse import cells
from cellfuse.errors import OptionError

# What a family asks, and the passes it has. "" is a plain sequence in float32.
FAMILIES: dict[str, tuple[str, ...]] = {
    "": ("inference", "training"),
    "ragged": ("inference", "training"),  # packed sequences of lengths from T/4 to T
    "directions": ("inference", "training"),  # bidirectional layers
    "reset": ("inference", "training"),  # episodes that start inside, at one time step in fifty
    "zoneout": ("training",),  # units that keep their value: masks drawn anew at each time step
    "stream": ("inference",),  # one time step a call
    "custom": ("inference", "training"),  # cells a user could have written, beside our LSTM of the same size
    "linear": ("inference", "training"),  # gates see the input only, or only their own unit: no matrix R
    "bf16": ("inference", "training"),  # weights, input and output in bfloat16
    "memory": ("training",),  # peak bytes instead of time
    "accuracy": ("training",),  # errors against float64 instead of time
}


@dataclass(frozen=True)
class BenchCase:
    """One cell at one size: T time steps, B sequences, I input features, H hidden units.

    family: a key of FAMILIES.
    """

    cell: str
    T: int
    B: int
    H: int
    family: str = ""

    @property
    def I(self) -> int:  # noqa: E743 - the letter of every shape
        """As many features as units, as in an inner layer."""
        return self.H

    @property
    def sizes(self) -> str:
        """The sizes as a name has them."""
        return f"T{self.T}-B{self.B}-H{self.H}"

    @property
    def name(self) -> str:
        """What `cellfuse bench` calls it."""
        return f"{self.family}/{self.cell}-{self.sizes}" if self.family else f"{self.cell}/{self.sizes}"

    @property
    def passes(self) -> tuple[str, ...]:
        """What is done with it."""
        return FAMILIES[self.family]

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, input and output."""
        return torch.bfloat16 if self.family == "bf16" else torch.float32

    @property
    def is_timed(self) -> bool:
        """Whether its figures are seconds."""
        return self.family not in ("memory", "accuracy")

    @property
    def reset(self) -> torch.Tensor:
        """[T, B], true where an episode starts."""
        return torch.rand(self.T, self.B, generator=torch.Generator().manual_seed(3)) < 1 / 50

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
DIRECTIONS = ((100, 1, 64), (100, 1, 256), (100, 8, 128), (100, 32, 128))
RESETS = ((128, 16, 64), (128, 16, 256))
ZONEOUT = ((100, 1, 256), (100, 32, 64), (100, 32, 256))
STREAMS = ((100, 1, 64), (100, 1, 256))
OTHERS = (50, 16, 64)
CUSTOM = ((100, 1, 64), (100, 1, 256), (100, 32, 64), (100, 32, 256))
CUSTOM_CELLS = ("peephole_lstm", "echo_lstm")
LINEAR = ((1000, 1, 256), (100, 32, 256))
LINEAR_CELLS = ("mingru", "minlstm", "qrnn", "sru", "indrnn")
LOW = ((100, 1, 256), (100, 32, 64), (100, 32, 256), (100, 32, 512))
MEMORY = ((100, 32, 256), (1000, 8, 128))
LONG = (1000, 2, 128)

# Probabilities by state, as Krueger et al. 2016 have them.
SHARES = {"h": 0.05, "c": 0.5}

# What a cell cannot be made without.
OPTIONS: dict[str, dict[str, int]] = {"projected_lstm": {"proj_size": 32}, "slstm": {"num_heads": 4}}

CASES: dict[str, BenchCase] = {
    case.name: case
    for case in [
        *(BenchCase(cell, *shape) for cell in HEART for shape in SHAPES),
        *(BenchCase(cell, *OTHERS) for cell in cells.CELLS),
        *(BenchCase(cell, *RAGGED, "ragged") for cell in HEART),
        *(BenchCase(cell, *shape, "directions") for cell in HEART for shape in DIRECTIONS),
        *(BenchCase(cell, *shape, "reset") for cell in HEART for shape in RESETS),
        *(BenchCase("lstm", *shape, "zoneout") for shape in ZONEOUT),
        *(BenchCase(cell, *shape, "stream") for cell in HEART for shape in STREAMS),
        *(BenchCase(cell, *shape, "custom") for cell in CUSTOM_CELLS for shape in CUSTOM),
        *(BenchCase(cell, *shape, "linear") for cell in LINEAR_CELLS for shape in LINEAR),
        *(BenchCase(cell, *shape, "bf16") for cell in HEART for shape in LOW),
        *(BenchCase(cell, *shape, "memory") for cell in HEART for shape in MEMORY),
        *(BenchCase(cell, *LONG, "accuracy") for cell in cells.CELLS),
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
