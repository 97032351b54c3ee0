"""Where the values of a Program stand in a GPU's memory: as on a CPU, without padding."""

from __future__ import annotations

from cellfuse.codegen.cpu.layout import Layout, Sizes
from cellfuse.codegen.cpu.target import Target
from cellfuse.codegen.program import Program


def cuda_layout(program: Program, sizes: Sizes, bits: int) -> Layout:
    """The layout whose vectors are single numbers; `bits` are those that are computed with."""
    return Layout(program, sizes, bits, Target("cuda", bits // 8, 0, ()))
