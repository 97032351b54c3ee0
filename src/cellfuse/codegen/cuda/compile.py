"""CUDA C++ text -> cubin, by NVRTC, for one kind of GPU. Needs neither a GPU nor its driver.

NVRTC comes with torch's CUDA build, and cuda-bindings with it; both are imported at the first use.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from cellfuse.codegen import cache
from cellfuse.errors import BackendError

_FORMAT = "2"  # of what is cached


@dataclass(frozen=True)
class Stats:
    """What the assembler says of one entry.

    Attributes:
        registers: of a thread.
        spilled: bytes that did not fit the registers, stored and loaded.
        local_bytes: of a thread's own memory: what spilled, and arrays whose index is not known.
        shared_bytes: of shared memory whose size the text fixes.
    """

    registers: int
    spilled: int
    local_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Cubin:
    """Machine code of one text for one kind of GPU.

    Attributes:
        code: what the driver loads.
        stats: by the entry's name.
    """

    code: bytes
    stats: dict[str, Stats]


@lru_cache(maxsize=1)
def why_not() -> str:
    """Why nothing can be compiled here; empty if it can."""
    try:
        from cuda.bindings import nvrtc

        error, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, OSError, RuntimeError) as problem:
        return (
            f"NVRTC cannot be loaded ({problem}); torch's CUDA build brings it, elsewhere "
            "pip install 'cellfuse[gpu-check]'"
        )
    return "" if not error.value and (major, minor) >= (12, 8) else f"NVRTC {major}.{minor} is too old"


def compile(text: str, arch: str, options: tuple[str, ...] = ()) -> Cubin:
    """Machine code of a text, from the cache on disk if it was compiled before.

    Args:
        arch: such as "sm_90".

    Raises:
        BackendError: NVRTC refuses the text, or is not there.
    """
    why = why_not()
    if why:
        raise BackendError(why)
    from cuda.bindings import nvrtc

    version = ".".join(map(str, nvrtc.nvrtcVersion()[1:]))
    options = (f"--gpu-architecture={arch}", "--std=c++17", "--ptxas-options=-v", *options)
    found = cache.load((_FORMAT, text, version, *options), lambda: _packed(_compile(text, options)))
    return _unpacked(found)


def _compile(text: str, options: tuple[str, ...]) -> Cubin:
    from cuda.bindings import nvrtc

    def value(result: tuple) -> Any:
        if result[0].value:
            raise BackendError(f"NVRTC: {nvrtc.nvrtcGetErrorString(result[0])[1].decode()}")
        return result[1] if len(result) > 1 else None

    def log() -> str:
        content = bytearray(value(nvrtc.nvrtcGetProgramLogSize(program)))
        value(nvrtc.nvrtcGetProgramLog(program, content))
        return content.decode(errors="replace").strip("\0\n ")

    program = value(nvrtc.nvrtcCreateProgram(text.encode(), b"cellfuse.cu", 0, None, None))
    try:
        result = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if result[0].value:
            raise BackendError(f"NVRTC does not take this text with {' '.join(options)}:\n{log()}")
        code = bytearray(value(nvrtc.nvrtcGetCUBINSize(program)))
        value(nvrtc.nvrtcGetCUBIN(program, code))
        return Cubin(bytes(code), stats(log()))
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def stats(log: str) -> dict[str, Stats]:
    """What the assembler's log says of each entry."""
    found: dict[str, Stats] = {}
    for part in log.split("Compiling entry function '")[1:]:
        entry = part.split("'", 1)[0]

        def number(pattern: str, part: str = part) -> int:
            return sum(int(n) for match in re.findall(pattern, part) for n in match if n)

        found[entry] = Stats(
            registers=number(r"Used (\d+)() registers"),
            spilled=number(r"(\d+) bytes spill stores, (\d+) bytes spill loads"),
            local_bytes=number(r"(\d+)() bytes stack frame"),
            shared_bytes=number(r"(\d+)() bytes smem"),
        )
    return found


def _packed(cubin: Cubin) -> bytes:
    head = json.dumps({name: asdict(each) for name, each in cubin.stats.items()}).encode()
    return len(head).to_bytes(8, "little") + head + cubin.code


def _unpacked(content: bytes) -> Cubin:
    end = 8 + int.from_bytes(content[:8], "little")
    return Cubin(content[end:], {name: Stats(**each) for name, each in json.loads(content[8:end]).items()})
