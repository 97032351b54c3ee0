"""Text -> machine code in memory, by LLVM."""

from __future__ import annotations

import ctypes
import os
import threading
from functools import lru_cache
from typing import Any

from cellfuse.codegen import cache
from cellfuse.codegen.cpu import llvm
from cellfuse.codegen.cpu.driver import emit_driver
from cellfuse.codegen.cpu.emit import LOOPS, Emitted, emit
from cellfuse.codegen.cpu.layout import Layout
from cellfuse.codegen.cpu.products import emit_tiles, shared_name
from cellfuse.codegen.cpu.step import emit_step
from cellfuse.codegen.cpu.target import Target, features

# Such calls release Python's lock.
_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
# Such calls do not, because they end at once.
_SHORT = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)


@lru_cache(maxsize=1)
def _start() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


class Kernel:
    """The compiled loops of a program.

    Attributes:
        layout: of the buffers it works on.
        emitted: its text and sizes.
        run, pack: by the loop's name, functions that take the address of a table of slots.
        run_address, pack_address: where they stand.
    """

    def __init__(self, layout: Layout, loops: tuple[str, ...] = LOOPS) -> None:
        self.layout = layout
        self.emitted: Emitted = emit(layout, loops)
        tiles(layout.bits, layout.target, self.emitted.is_far)
        self._engine = _load(self.emitted.text, layout.target)
        address = self._engine.get_function_address
        self.run_address = {name: address(f"run_{name}") for name in loops}
        self.pack_address = {name: address(f"pack_{name}") for name in loops}
        self.run = {name: _FUNCTION(at) for name, at in self.run_address.items()}
        self.pack = {name: _FUNCTION(at) for name, at in self.pack_address.items()}


class Driver:
    """The compiled driver of whole calls, for numbers of `bits` bits.

    Attributes:
        run: by "forward" and "backward", functions of (call, thread, count).
        point: a function of a call, see `driver.emit_driver`.
        enter, enter_both: by the same names, addresses of what OpenMP is to call, for one call and for two.
    """

    def __init__(self, bits: int, target: Target) -> None:
        tiles(bits, target, False)
        self._engine = _load(emit_driver(bits, target), target, is_plain=True)
        address = self._engine.get_function_address
        self.run = {name: _CALL(address(name)) for name in ("forward", "backward")}
        self.point = _SHORT(address("point"))
        self.enter = {name: address(f"enter_{name}") for name in ("forward", "backward")}
        self.enter_both = {name: address(f"enter_both_{name}") for name in ("forward", "backward")}


_tiles: dict[tuple[int, Target, bool], llvm.ExecutionEngine] = {}
_tiles_lock = threading.Lock()


def _renew_lock() -> None:
    """In a forked process: another thread of the parent may have held it."""
    global _tiles_lock
    _tiles_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def tiles(bits: int, target: Target, is_far: bool) -> llvm.ExecutionEngine:
    """The functions of `products.emit_tiles`, compiled at first use and known to the linker.

    Once, and kept for good: kernels are linked to what stands under these names.
    """
    key = bits, target, is_far
    with _tiles_lock:
        if key not in _tiles:
            engine = _load(emit_tiles(bits, target, is_far), target, is_plain=True)
            names = [*(f"rows_{width}" for width in range(1, target.tile_width + 1)), "pack_strip"]
            for name in (f"{name}_{shared_name(bits, target, is_far)}" for name in names):
                llvm.add_symbol(name, engine.get_function_address(name))
            _tiles[key] = engine
        return _tiles[key]


class StepKernel:
    """The compiled single step of a program.

    Attributes:
        scratch: numbers of working memory.
        gathered: numbers for each row of sums over units that are being made.
        run: takes the address of a table of `layout.step_slots`.
    """

    def __init__(self, layout: Layout) -> None:
        text, self.scratch, self.gathered = emit_step(layout)
        self._engine = _load(text, layout.target)
        self.run = _FUNCTION(self._engine.get_function_address("run_step"))


def load_functions(text: str, target: Target, names: tuple[str, ...]) -> dict[str, Any]:
    """Functions of a text that take one address; their code lives as long as they do."""
    engine = _load(text, target)
    made = {name: _FUNCTION(engine.get_function_address(name)) for name in names}
    for function in made.values():
        function.engine = engine  # type: ignore[attr-defined]
    return made


def _load(text: str, target: Target, *, is_plain: bool = False) -> llvm.ExecutionEngine:
    parts = (text, llvm.get_host_cpu_name(), features(target), str(llvm.llvm_version_info))
    return _link(cache.load(parts, lambda: object_code(text, target, is_plain=is_plain)), target)


def _machine(target: Target) -> llvm.TargetMachine:
    _start()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features(target), opt=3, jit=True
    )


def object_code(text: str, target: Target, *, is_plain: bool = False) -> bytes:
    """Object code of the text. is_plain: without the passes, which would find nothing to do."""
    machine = _machine(target)
    module = llvm.parse_assembly(text)
    module.verify()
    if is_plain:
        return bytes(machine.emit_object(module))
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    # The text is in vectors already, and unrolled where it helps.
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    code: bytes = machine.emit_object(module)
    return code


def _link(code: bytes, target: Target) -> llvm.ExecutionEngine:
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine(target))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine
