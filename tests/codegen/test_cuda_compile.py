"""NVRTC takes the kernels for every kind of GPU: nothing spills, and the shared memory is there."""

import pytest

import cellfuse as cf
from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.codegen.cuda import compile as compiling
from cellfuse.codegen.cuda.layout import cuda_layout
from cellfuse.codegen.cuda.pointwise import pointwise
from cellfuse.codegen.lower import lower
from cellfuse.errors import BackendError
from codegen import cells_of_tests
from gpu.nvrtc import WHY_NOT, compile_all

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
CELLS = cf.cells.CELLS | cells_of_tests.CELLS
ARCHS = ("sm_80", "sm_90", "sm_100", "sm_120")


def kernel(name, dtype, H=128):
    cell = CELLS[name]
    sizes = Sizes(H, H // 2 if cell.projected else 0, 2 if cell.recurrence == "blocks" else 1)
    bits = 64 if dtype == "float64" else 32
    return pointwise(cuda_layout(lower(cell.step), sizes, bits), dtype).kernel


def check(kernels, archs):
    made = compile_all([kernel.text for kernel in kernels], archs)
    for (arch, k), entries in made.items():
        assert entries.keys() == set(kernels[k].entries)
        assert kernels[k].shared_bytes <= 227 * 1024
        for entry, stats in entries.items():
            assert 0 < stats.registers <= 255, (arch, entry)
            # The slow paths of double-precision functions are calls, around which a few values are put aside.
            assert stats.spilled <= 32 * ("double" in kernels[k].text.split("__global__")[1]), (arch, entry)


def test_every_cell_compiles():
    check([kernel(name, "float32", 302) for name in CELLS], ["sm_90"])


@pytest.mark.parametrize("arch", ARCHS)
def test_every_kind_of_gpu(arch):
    formats = ("float32", "float64", "bfloat16", "float16")
    check([kernel(name, dtype) for name in ("lstm", "focus") for dtype in formats], [arch])


def test_the_check_of_spills_sees_one():
    lines = [f"a[{k} * 64 + threadIdx.x] = v{k};" for k in range(64)]
    loads = [f"float v{k} = a[threadIdx.x + {k}] * v{k - 1};" for k in range(1, 64)]
    head = 'extern "C" __global__ void __launch_bounds__(1024, 2) f(float* a) {'
    text = "\n".join([head, "float v0 = a[0];", *loads, "__syncthreads();", *lines, "}"])
    assert compile_all([text], ["sm_80"])["sm_80", 0]["f"].spilled > 0


def test_a_refused_text_is_said_with_its_line():
    with pytest.raises(BackendError, match=r"(?s)sm_90.*cellfuse.cu\(2\): error.*undefined_name"):
        compiling.compile("// one\n__device__ int f() { return undefined_name; }", "sm_90")


def test_machine_code_is_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLFUSE_CACHE", str(tmp_path))
    text = 'extern "C" __global__ void f(float* a) { a[threadIdx.x] += 1; }'
    first = compiling.compile(text, "sm_90")
    assert first.code[:4] == b"\x7fELF"
    assert first.stats["f"].registers > 0
    monkeypatch.setattr(compiling, "_compile", None)
    assert compiling.compile(text, "sm_90") == first
    with pytest.raises(TypeError):  # another GPU's code is another file
        compiling.compile(text, "sm_80")


def test_the_log_of_the_assembler_is_read():
    log = """ptxas info    : Compiling entry function 'a' for 'sm_90'
ptxas info    : Function properties for a
    0 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 2048 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'b' for 'sm_90'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, 400 bytes cmem[0]"""
    want = {"a": compiling.Stats(255, 20, 2048), "b": compiling.Stats(10, 0, 0)}
    assert compiling.stats(log) == want
