"""Run the text of a CUDA kernel on the CPU. The launcher says so where no C++ compiler is found.

`Emulator.launch` has the form of `cellfuse.codegen.cuda.kernel.Launcher`; pointers are addresses in the
memory of this process: `array.ctypes.data`, `tensor.data_ptr()`.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
WHY_NOT = "" if COMPILER else "the emulator of CUDA kernels needs g++, which is not on this machine"
# NVRTC refuses what is no C++, arrays without elements for one.
FLAGS = (
    "-std=c++20",
    "-pedantic-errors",
    "-O1",
    "-fvisibility-inlines-hidden",
    "-fPIC",
    "-shared",
    f"-I{HERE}",
)

_KINDS = {
    "pointer": ctypes.c_void_p,
    "int64": ctypes.c_int64,
    "int32": ctypes.c_int32,
    "float32": ctypes.c_float,
}


class EmulatorError(RuntimeError):
    """The kernel did something that a GPU forbids, or waits for ever."""


class _Dim3(ctypes.Structure):
    _fields_ = [(axis, ctypes.c_uint) for axis in "xyz"]


class _Sizes(ctypes.Structure):
    _fields_ = [
        ("blocks", _Dim3),
        ("threads", _Dim3),
        ("cluster", ctypes.c_int),
        ("shared_bytes", ctypes.c_longlong),
        ("seed", ctypes.c_uint),
        ("error", ctypes.c_char_p),
    ]


@functools.cache
def _folder():
    return Path(tempfile.mkdtemp(prefix="cellfuse_emulator_"))


def _run_compiler(*arguments):
    done = subprocess.run([COMPILER, *FLAGS, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise EmulatorError(f"g++ does not take the kernel's text:\n{done.stderr[:4000]}")


@functools.cache
def _machine():
    """The library with the emulator, which every kernel's library shares."""
    library = _folder() / "libemulator.so"
    _run_compiler("-O2", HERE / "emulator.cpp", "-o", library)
    return library


@functools.lru_cache(maxsize=64)
def compiled(text, entries):
    """A kernel's library."""
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    source, library = _folder() / f"{name}.cpp", _folder() / f"{name}.so"
    exported = "\n".join(f"EMULATED_ENTRY({entry})" for entry in entries)
    source.write_text(f'#include "emulator.h"\n{text}\n#include "entry.h"\n{exported}\n')
    machine = _machine()
    _run_compiler(source, "-o", library, machine, f"-Wl,-rpath,{machine.parent}")
    return ctypes.CDLL(str(library))


class Emulator:
    """Launches kernels, one after the other.

    Args:
        seed: of the order in which threads run and in which memory becomes visible.
    """

    def __init__(self, seed=0):
        if WHY_NOT:
            raise EmulatorError(WHY_NOT)
        self.seed = seed

    def launch(self, kernel, entry, grid, arguments, shared_bytes=None):
        """See `Launcher`. Returns when the kernel has ended.

        Raises:
            EmulatorError: what the kernel did wrong, with its CTA and thread.
        """
        library = compiled(kernel.text, kernel.entries)
        if len(arguments) != len(kernel.parameters):
            raise EmulatorError(f"{len(arguments)} arguments for {len(kernel.parameters)} parameters")
        if getattr(library, f"count_{entry}")() != len(kernel.parameters):
            raise EmulatorError(f"{entry} in the text does not have {len(kernel.parameters)} parameters")
        values = [_KINDS[p.kind](a) for p, a in zip(kernel.parameters, arguments, strict=True)]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        size = kernel.shared_bytes if shared_bytes is None else shared_bytes
        self.run(library, entry, pointers, grid, kernel.threads, kernel.cluster, size)

    def run(self, library, entry, pointers, grid, threads, cluster, shared_bytes):
        """Run an entry of a compiled library with pointers to its arguments, as CUDA takes them."""
        error = ctypes.create_string_buffer(1024)
        blocks, threads = _Dim3(*grid), _Dim3(threads, 1, 1)
        sizes = _Sizes(blocks, threads, cluster, shared_bytes, self.seed, ctypes.addressof(error))
        getattr(library, f"emulate_{entry}")(ctypes.byref(sizes), pointers)
        if error.value:
            raise EmulatorError(f"{entry}: {error.value.decode()}")
