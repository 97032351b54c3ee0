"""What one time step launches: products, which a library makes, and a kernel after them; as data."""

from __future__ import annotations

from dataclasses import dataclass

from cellfuse.codegen.cuda.kernel import CudaKernel
from cellfuse.codegen.program import Place, Stage


@dataclass(frozen=True)
class Multiplication:
    """Values times a matrix that is put together from the step's matrices.

    Attributes:
        operand: its first column.
        blocks: for each column of the operand, for each result: label of the matrix, whether it is
            transposed.
        results: how many, side by side.
        axis: of each result.
        is_by_head: the matrices are block-diagonal; results stand head by head, [N, rows, results * K].
    """

    operand: Place
    blocks: tuple[tuple[tuple[str, bool], ...], ...]
    axis: str
    is_by_head: bool

    @property
    def results(self) -> int:
        """How many values it makes."""
        return len(self.blocks[0])


@dataclass(frozen=True)
class Launch:
    """Products, then one kernel.

    Attributes:
        products: the k-th writes the buffer results.k.
        entry: of the kernel.
        units: threads for each row; 0: a block for each row.
    """

    products: tuple[Multiplication, ...]
    entry: str
    units: int

    def grid(self, rows: int, threads: int) -> tuple[int, int, int]:
        """Blocks for so many rows."""
        return (-(-rows * self.units // threads) if self.units else rows, 1, 1)


@dataclass(frozen=True)
class Pointwise:
    """The kernels of a program.

    Attributes:
        kernel: all of them; its parameters are "rows" and the names in `parameters`.
        loops: launches of a time step by the loop's name.
        results: numbers in a row of each results.k, by loop.
        gathered: numbers in a row of the buffer "gathered".
    """

    kernel: CudaKernel
    loops: dict[str, tuple[Launch, ...]]
    results: dict[str, tuple[int, ...]]
    gathered: int


def groups(stages: tuple[Stage, ...]) -> list[list[Stage]]:
    """Stages that share a kernel: a product starts a new one. Stages without work are left out."""
    groups: list[list[Stage]] = []
    for stage in stages:
        if not (stage.scans or stage.numbers or stage.stores or stage.maps):
            continue
        if not groups or any(each.products for each in stage.maps):
            groups.append([])
        groups[-1].append(stage)
    return groups
