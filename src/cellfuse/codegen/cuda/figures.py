"""The figures of a GPU that the model of a kernel's time is made of: one row each, with unit and source.

They are those of an H100. `basis` says whose word a row is: "published" by the source for such a chip;
"assumed" where the source gives only the reasoning; "measured" by benchmarks/gpu.py, whose line of JSON the
source then names. None is measured yet: a wrong figure makes the choice of a kernel slower, never its
results wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

BASES = ("published", "assumed", "measured")


@dataclass(frozen=True)
class Figure:
    """One constant of the model.

    Attributes:
        name: as `value_of` takes it.
        value: in `unit`.
        unit: such as "cycles".
        what: that takes so long, or is so wide.
        basis: one of BASES.
        source: where the value comes from.
    """

    name: str
    value: float
    unit: str
    what: str
    basis: str
    source: str


_HOPPER = "Luo et al. 2024, arXiv:2402.13499"
_GUIDE = "NVIDIA CUDA C++ Programming Guide"
_CHIPS = "chipsandcheese.com, Nvidia's H100: Funny L2, and Tons of Bandwidth, 2023"

FIGURES = {
    figure.name: figure
    for figure in (
        # What an SM does by itself.
        Figure(
            "clock", 1900, "cycles/us", "an SM's clock while a loop runs", "assumed",
            "H100 SXM boosts to 1980 MHz (NVIDIA's data sheet); 4% less under load",
        ),
        Figure(
            "sync", 35, "cycles", "a barrier of a CTA of 256 threads", "assumed",
            "about 20 to 40 on GPUs since Volta, as microbenchmarks of bar.sync report",
        ),
        Figure(
            "shared_bandwidth", 128, "bytes/cycle", "shared memory of an SM", "published",
            f"32 banks of 4 bytes a cycle: {_GUIDE}, Shared Memory",
        ),
        Figure(
            "mma", 6.5, "cycles", "between two mma.sync of a scheduler: m16n8k16, or m16n8k8 TF32", "assumed",
            f"4 at the chip's peak; mma.sync reaches about 62% of it: {_HOPPER}, tensor cores",
        ),
        Figure(
            "mma_latency", 33, "cycles", "from an mma.sync to the next that adds to its result", "assumed",
            f"about 33 for m16n8k16, as on the A100: {_HOPPER}, tensor cores",
        ),
        Figure(
            "split", 4, "cycles", "adding one more partial sum of a product", "assumed",
            "one load and one addition that wait for each other, half of them hidden",
        ),
        Figure(
            "sums", 60, "cycles", "beginning and end of the sum over splits", "assumed",
            "two accesses of shared memory at about 30 cycles each: " + _HOPPER,
        ),
        Figure(
            "pointwise", 140, "cycles", "the cell of one unit and sequence, forward", "assumed",
            "four functions of exp and about 20 other operations that wait for each other, at 4 to 20 each",
        ),
        Figure(
            "pointwise_back", 60, "cycles", "the cell of one unit and sequence, backward", "assumed",
            "about 12 multiply-adds that wait for each other, at 4 each; factors are ready before",
        ),
        Figure(
            "loop", 100, "cycles", "a time step of a cell without product, beside the cell", "assumed",
            "counters, and a store of the state whose address waits for them",
        ),
        # What the CTAs of a cluster do.
        Figure(
            "cluster_latency", 230, "cycles", "a message to an SM of the cluster, until seen", "assumed",
            f"180 for the network between SMs ({_HOPPER}); 50 for st.async and the wait on an mbarrier",
        ),
        Figure(
            "cluster_bandwidth", 14, "bytes/cycle", "messages that an SM receives", "published",
            f"3.3 TB/s by 132 SMs at 1755 MHz: {_HOPPER}, distributed shared memory",
        ),
        Figure(
            "inbox", 4, "cycles", "adding what one more CTA has sent", "assumed",
            "one load of shared memory and one addition, in a row of independent ones",
        ),
        # What the CTAs of the whole grid do.
        Figure(
            "grid_latency", 750, "cycles", "a word from one SM to another through the L2 cache", "assumed",
            f"a store and two polls at 200 to 270 cycles of L2 latency each: {_HOPPER}, memory latency",
        ),
        Figure(
            "grid_bandwidth", 24, "bytes/cycle", "L2 cache to an SM while all SMs read", "published",
            f"5.5 to 6 TB/s by all SMs: {_CHIPS}",
        ),
        Figure(
            "grid_bandwidth_alone", 64, "bytes/cycle", "L2 cache to an SM while few read", "assumed",
            "64 bytes a cycle and SM: NVIDIA's A100 whitepaper, L2 read bandwidth of 5120 bytes a cycle",
        ),
        # What a step costs where it is a launch.
        Figure(
            "per_step", 8, "us", "a time step forward as a product by cuBLAS and a kernel", "assumed",
            "two dependent nodes of a CUDA graph at 1.3 us, a small product of 3 to 5, a kernel of 1.5 to 2",
        ),
        Figure(
            "per_step_back", 16, "us", "a time step backward, alike", "assumed",
            "twice the step forward",
        ),
    )
}  # fmt: skip


def value_of(name: str) -> float:
    """The value of a figure."""
    return FIGURES[name].value
