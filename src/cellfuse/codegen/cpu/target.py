"""The processor: width of its vectors, number of its registers, how products are cut to fit them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from cellfuse.codegen.cpu import llvm


@dataclass(frozen=True)
class Target:
    """What the emitted text depends on.

    Attributes:
        name: "avx512", "avx512-intel", "avx2", "sse" or "neon".
        bytes: of one vector register.
        tile_width: vectors of a tile of the result that one row takes, at most.
        tile_rows: rows of a tile, by its width in vectors: the tile, one row of the matrix and one
            repeated number have to fit the registers.
        has_slow_division: whether dividing a vector of float32 takes longer than an estimate of the
            reciprocal and its corrections: 16 against 6 cycles on Intel's AVX-512, 11 against 12 on Zen 5.
    """

    name: str
    bytes: int
    tile_width: int
    tile_rows: tuple[int, ...]
    has_slow_division: bool = False

    def lanes(self, bits: int) -> int:
        """Numbers in a vector."""
        return self.bytes * 8 // bits


# No more than 8 rows: the addresses of twelve find no registers, and 12 x 2 took three times as long.
AVX512 = Target("avx512", 64, 4, (0, 8, 8, 8, 6))
AVX512_INTEL = replace(AVX512, name="avx512-intel", has_slow_division=True)
AVX2 = Target("avx2", 32, 3, (0, 8, 6, 4))
NEON = Target("neon", 16, 4, (0, 12, 12, 8, 6))
SSE = Target("sse", 16, 3, (0, 8, 6, 4))
TARGETS = {target.name: target for target in (AVX512, AVX512_INTEL, AVX2, NEON, SSE)}

# The lower level's processors have no instruction of the level above.
_WITHOUT = {
    "avx512": (),
    "avx512-intel": (),
    "avx2": ("avx512",),
    "sse": ("avx", "fma", "f16c", "xop", "vaes", "vpclmulqdq"),
    "neon": (),
}


@lru_cache(maxsize=1)
def host() -> Target:
    """The best target this processor can run."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f") and features.get("avx512dq") and features.get("avx512vl"):
        is_amd = llvm.get_host_cpu_name().startswith("znver")
        return AVX512 if is_amd else AVX512_INTEL
    if features.get("avx2") and features.get("fma"):
        return AVX2
    return NEON if llvm.get_default_triple().startswith(("aarch64", "arm64")) else SSE


@lru_cache(maxsize=4)
def features(target: Target) -> str:
    """LLVM's list of processor features, without those above the target."""
    found = llvm.get_host_cpu_features()
    for name in found:
        if name.startswith(_WITHOUT[target.name]) and _WITHOUT[target.name]:
            found[name] = False
    return str(found.flatten())
