"""Where the values of a Program stand in memory, for given sizes: columns, strides, slots of pointers.

Units are padded to whole vectors, head by head, so that no kernel has a loop for the rest. Padding is
never read as part of a product or a sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from cellfuse.codegen.cpu.target import Target
from cellfuse.codegen.program import Place, Program
from cellfuse.graph.ops import Shape

# Whole numbers that the kernels are given, before the pointers.
NUMBERS = (
    "first",  # time steps are counted in the order of the computation; run those from `first`
    "last",  # up to and without `last`
    "first_row",  # of each time step those sequences from `first_row`
    "last_row",  # up to and without `last_row`: threads share the batch
    "origin",  # the time of step 0: 0, or T - 1 in the reverse direction
    "direction",  # 1, or -1 in the reverse direction
    "batch",  # rows of a slab
    "starts",  # pointer to T + 1 numbers: row of each time step in buffers of rows "time"
    # Threads that share the units instead, of which this is one; they meet after each stage.
    "thread",
    "threads",  # 0 or 1: this one has all units
    *("meet", "arrived", "own"),  # the driver's function and its arguments
)

OF_USER = ("matrix", "diagonal", "bias", "parameter")  # roles of the leaves that are parts of weights


@dataclass(frozen=True)
class Sizes:
    """Sizes of the axes.

    Attributes:
        hidden: H.
        projected: P; 0 without a projection.
        heads: N; H / N units each.
    """

    hidden: int
    projected: int = 0
    heads: int = 1


class Layout:
    """Of the buffers of one program on one target.

    Args:
        bits: 32 or 64, of the numbers.
    """

    def __init__(self, program: Program, sizes: Sizes, bits: int, target: Target) -> None:
        self.program, self.sizes, self.bits, self.target = program, sizes, bits, target
        self.lanes = target.lanes(bits)

    def groups(self, axis: str) -> int:
        """Parts of an axis that are padded each by itself."""
        return self.sizes.heads if axis == "H" else 1

    def units(self, axis: str) -> int:
        """Units of one part of an axis."""
        return self.sizes.hidden // self.sizes.heads if axis == "H" else self.sizes.projected

    def vectors(self, axis: str) -> int:
        """Vectors of one part of an axis."""
        return -(-self.units(axis) // self.lanes)

    def width(self, shape: Shape) -> int:
        """Numbers that a column takes."""
        if not shape:
            return 1
        return self.groups(shape[0]) * self.vectors(shape[0]) * self.lanes

    def is_padded(self, axis: str) -> bool:
        """Whether there are numbers in memory that are no units."""
        return self.units(axis) % self.lanes != 0

    @cached_property
    def offsets(self) -> dict[str, tuple[int, ...]]:
        """Where each column of each buffer begins in a row, and where the last one ends."""
        return {
            name: tuple(accumulate((self.width(shape) for shape in buffer.columns), initial=0))
            for name, buffer in self.program.buffers.items()
        }

    def offset(self, name: str, column: int) -> int:
        """Where a column begins in a row."""
        return self.offsets[name][column]

    @cached_property
    def strides(self) -> dict[str, int]:
        """Numbers in a row of each buffer."""
        return {name: offsets[-1] for name, offsets in self.offsets.items()}

    @cached_property
    def slots(self) -> dict[str, int]:
        """Position of each number and pointer among the kernels' arguments.

        Besides the buffers: the states' slabs and initial values and how many slabs there are (less
        one, a mask of bits), the packed matrices, working memory, and the matrices by label.
        """
        names = [*NUMBERS, *(name for name in self.program.buffers if name != "states")]
        for column in range(len(self.program.buffers["states"].columns)):
            names += [f"states.{column}", f"initial.{column}", f"mask.{column}"]
        names += ["infer_weights", "forward_weights", "backward_weights", "scratch", "gathered"]
        names += [leaf.label for leaf in self.program.step.of_role("matrix")]
        return {name: slot for slot, name in enumerate(names)}

    @cached_property
    def step_slots(self) -> dict[str, int]:
        """Position of each number and pointer among the arguments of `step`, most of them a user's tensors.

        States before and after the step, [B, width], and memory of their padded form; the output; the
        input and its product's weight and bias; matrices, biases and parameters by label.
        """
        names = ["batch", "input_size", "input", "y", "weight_ih", "bias_ih", "bias", "scratch", "gathered"]
        names += ["products", "parameters", "constants", "output", "infer_temp", "infer_numbers"]
        for column in range(len(self.program.buffers["states"].columns)):
            names += [f"{pad}{which}.{column}" for pad in ("", "padded ") for which in ("before", "after")]
        names += [leaf.label for leaf in self.program.step.inputs if leaf.role in OF_USER]
        names += [label for label, _ in self.program.moved]
        return {name: slot for slot, name in enumerate(dict.fromkeys(names))}

    def is_state(self, place: Place) -> bool:
        """Whether a place is a column of the states."""
        return place.buffer in ("before", "after")
