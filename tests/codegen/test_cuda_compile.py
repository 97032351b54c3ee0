"""NVRTC takes the kernels for every kind of GPU: no local memory, no fences, enough shared memory."""

import pytest

import cellfuse as cf
from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.codegen.cuda import compile as compiling
from cellfuse.codegen.cuda.layout import cuda_layout
from cellfuse.codegen.cuda.pointwise import pointwise
from cellfuse.codegen.lower import lower
from cellfuse.errors import BackendError
from codegen import cells_of_tests
from gpu import machine_code
from gpu.nvrtc import WHY_NOT, compile_all

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
CELLS = cf.cells.CELLS | cells_of_tests.CELLS
ARCHS = ("sm_80", "sm_90", "sm_100", "sm_120")
FORMATS = ("float32", "float64", "bfloat16", "float16")


def kernel(name, dtype, H=128, *, bias=True, recompute=False):
    cell = CELLS[name]
    sizes = Sizes(H, H // 2 if cell.projected else 0, 2 if cell.recurrence == "blocks" else 1)
    program = lower(cell.step if bias else cell.step_without_bias, recompute=recompute)
    return pointwise(cuda_layout(program, sizes, 64 if dtype == "float64" else 32), dtype).kernel


def check(kernels, archs):
    """No local memory and no fence; only sin and cos of a large argument need an array of their own."""
    texts = [each.text for each in kernels]
    for (arch, k), entries in compile_all(texts, archs).items():
        assert entries.keys() == set(kernels[k].entries)
        assert kernels[k].shared_bytes <= 227 * 1024
        codes = machine_code.slow_codes(compiling.compile(texts[k], arch).code)  # from the cache
        assert codes.keys() == entries.keys()
        body = texts[k][texts[k].index("__global__") :]
        array = 40 if "cf_sin(" in body or "cf_cos(" in body else 0
        for entry, stats in entries.items():
            where = f"{arch} {entry} {stats} {dict(codes[entry])}"
            assert 0 < stats.registers <= 255, where
            assert stats.spilled == 0, where
            assert stats.local_bytes <= array, where
            assert all(array and name in ("LDL", "STL") for name in codes[entry]), where


@pytest.mark.parametrize("arch", ARCHS)
def test_every_cell_has_neither_local_memory_nor_fences(arch):
    """Every cell on every GPU, every format on every GPU: the formats go round by cell."""
    first = ARCHS.index(arch)
    check([kernel(name, FORMATS[(first + k) % 4], 302) for k, name in enumerate(CELLS)], [arch])
    if arch == "sm_90":  # where it spilled
        check([kernel("layer_norm_lstm", "float32", 300, bias=False)], [arch])


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("H", [14, 128, 300])
@pytest.mark.parametrize(("bias", "recompute"), [(True, False), (False, True)])
def test_every_kernel_has_neither_local_memory_nor_fences(arch, H, bias, recompute):
    kernels = [kernel(name, dtype, H, bias=bias, recompute=recompute) for name in CELLS for dtype in FORMATS]
    check(kernels, [arch])


SLOW = """
extern "C" __global__ void slow(float* a, int n) {
  float own[256];
  for (int k = 0; k < 256; k++) own[k] = a[k * 32 + threadIdx.x];
  __threadfence();
  own[n & 127] = a[3];
  a[n] = own[n >> 20];
}
extern "C" __global__ void quick(float* a, int n) { a[n] += 1; }
"""


@pytest.mark.parametrize("arch", ARCHS)
def test_local_memory_and_fences_are_seen(arch, tmp_path):
    found = compile_all([SLOW], [arch])[arch, 0]
    assert found["slow"].local_bytes == 1024
    assert found["slow"].spilled == found["quick"].local_bytes == 0
    code = compiling.compile(SLOW, arch).code
    codes = machine_code.slow_codes(code)
    assert codes.keys() == {"slow", "quick"}
    assert not codes["quick"]
    assert codes["slow"].keys() == {"STL", "LDL", "MEMBAR", "CCTL", "ERRBAR"}
    if not machine_code.WHY_NOT:
        listed, _ = machine_code.instructions(code, tmp_path)
        for name in machine_code.CODES.values():
            assert machine_code.count(listed, rf"{name}\b") == codes["slow"][name]


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
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 2048 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'b' for 'sm_90'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, 400 bytes cmem[0]"""
    want = {"a": compiling.Stats(255, 20, 16, 2048), "b": compiling.Stats(10, 0, 0, 0)}
    assert compiling.stats(log) == want
