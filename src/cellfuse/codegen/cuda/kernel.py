"""CudaKernel: a CUDA C++ text with all that is needed to launch it. Does not compile and does not launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel.

    Attributes:
        name: as in the text.
        kind: "pointer" (an address in the device's memory), "int64", "int32" or "float32".
    """

    name: str
    kind: str = "pointer"


@dataclass(frozen=True)
class CudaKernel:
    """A text, and how its entries are launched.

    The text includes no header. It is valid CUDA C++ for NVRTC, and valid C++ after a preamble that
    defines CUDA's words, its thread numbers and the functions of <math.h>.

    Attributes:
        text: one translation unit.
        entries: names of its `extern "C" __global__` functions. All take the same parameters.
        parameters: of every entry, in order; arguments are given in this order.
        threads: in a block, along x. A grid has blocks along x, y and z.
        shared_bytes: of dynamic shared memory that every launch needs.
        cluster: blocks in a cluster, along x; 1: no clusters.
        is_cooperative: whether all blocks must run at the same time.
    """

    text: str
    entries: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    threads: int
    shared_bytes: int = 0
    cluster: int = 1
    is_cooperative: bool = False


class Launcher(Protocol):
    """What can run a kernel: the driver of a device, or an emulator on the host."""

    def launch(
        self,
        kernel: CudaKernel,
        entry: str,
        grid: tuple[int, int, int],
        arguments: Sequence[int | float],
        shared_bytes: int | None = None,
    ) -> None:
        """Run an entry after what was launched before.

        Args:
            grid: blocks along x, y and z.
            arguments: one for each of `kernel.parameters`; pointers as addresses.
            shared_bytes: of dynamic shared memory, if not `kernel.shared_bytes`.
        """
