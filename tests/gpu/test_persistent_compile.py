"""Persistent kernels compiled for several GPUs: registers, spills, shared memory; what is in their loop."""

import pytest

import cellfuse as cf
from cellfuse.codegen.cuda.compile import compile, why_not
from cellfuse.codegen.cuda.persistent import Persistent
from cellfuse.codegen.cuda.plan import A100, B200, H100, RTX5090, plan
from cellfuse.codegen.cuda.step import step_functions, why_no_step
from cellfuse.codegen.lower import lower
from gpu import machine_code, nvrtc

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")

DEVICES = {"sm_80": A100, "sm_90": H100, "sm_100": B200, "sm_120": RTX5090}
NAMES = ("lstm", "gru", "rnn", "peephole_lstm", "slstm")
PROGRAMS = {name: lower(cell.step) for name, cell in cf.cells.CELLS.items()}
WITHOUT_PRODUCT = [
    name
    for name, program in PROGRAMS.items()
    if not why_no_step(program) and not step_functions(program, 64).matrices
]


def planned(name, units, batch, precision, device):
    """The kernels of the plan, if there are any."""
    found = plan(PROGRAMS[name], units, batch=batch, precision=precision, device=device)
    return [kernel for kernel in (found.infer, found.forward, found.backward) if kernel]


def check(kernels, arch):
    texts = [kernel.kernel().text for kernel in kernels]
    compiled = nvrtc.compile_all(texts, [arch])
    for k, kernel in enumerate(kernels):
        (stats,) = compiled[arch, k].values()
        where = f"{arch} {kernel.loop} {kernel.precision} {kernel.exchange} H={kernel.units} C={kernel.ctas}"
        assert stats.spilled == 0, f"{where}: {stats.spilled} bytes spilled"
        assert stats.registers <= 255, where
        assert kernel.shared_bytes + stats.shared_bytes <= DEVICES[arch].shared_bytes, where


@pytest.mark.parametrize("arch", DEVICES)
def test_planned_kernels_fit_every_gpu(arch):
    cases = [
        ("lstm", 256, 16, "bf16"),
        ("gru", 96, 3, "fp32"),
        ("lstm", 512, 16, "fp16"),
        ("gru", 64, 64, "tf32"),
    ]
    kernels = [kernel for case in cases for kernel in planned(*case, DEVICES[arch])]
    assert len(kernels) >= 6
    check(kernels, arch)


@pytest.mark.parametrize("name", WITHOUT_PRODUCT)
def test_cells_without_a_recurrent_product_compile_in_every_precision(name):
    kernels = [
        kernel
        for precision in ("fp32", "tf32", "bf16", "fp16")
        for kernel in planned(name, 64, 16, precision, H100)
    ]
    assert len(kernels) == 12
    check(kernels, "sm_90")


@pytest.mark.parametrize(
    ("name", "units", "batch", "precision", "arch"),
    [
        ("rnn", 768, 256, "bf16", "sm_100"),
        ("rnn_relu", 768, 256, "fp16", "sm_100"),
        ("rnn", 448, 384, "bf16", "sm_80"),
        ("rnn", 576, 512, "tf32", "sm_90"),
        ("rnn", 640, 256, "bf16", "sm_80"),
        ("rnn", 1152, 128, "bf16", "sm_90"),
    ],
)
def test_a_thread_with_many_items_does_not_spill(name, units, batch, precision, arch):
    check(planned(name, units, batch, precision, DEVICES[arch]), arch)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_every_planned_kernel_fits(name, precision):
    kernels = [
        kernel
        for units in (64, 100, 160, 256, 512, 768, 1024)
        for batch in (1, 16, 64, 256)
        for kernel in planned(name, units, batch, precision, H100)
    ]
    check(list({kernel.kernel().text: kernel for kernel in kernels}.values()), "sm_90")


def kernel_of(loop, exchange, ctas, **how):
    return Persistent(step_functions(PROGRAMS["lstm"], 256), loop, 256, exchange=exchange, ctas=ctas, **how)


def loop_of(kernel, tmp_path):
    text = kernel.kernel().text
    nvrtc.compile_all([text], ["sm_90"])  # in a process of its own; the next line finds it in the cache
    return machine_code.longest_loop(*machine_code.instructions(compile(text, "sm_90").code, tmp_path))


@pytest.mark.skipif(bool(machine_code.WHY_NOT), reason=machine_code.WHY_NOT or "-")
@pytest.mark.parametrize("loop", ["forward", "backward"])
@pytest.mark.parametrize(
    ("exchange", "ctas", "how"),
    [
        ("messages", 8, {"precision": "bf16", "tile": 8}),
        ("messages", 8, {"precision": "fp32", "tile": 4, "in_registers": 24}),
        ("write_once", 16, {"precision": "bf16", "tile": 8}),
    ],
)
def test_the_loop_has_no_fence_and_reads_no_weights(loop, exchange, ctas, how, tmp_path):
    kernel = kernel_of(loop, exchange, ctas, **how)
    code = loop_of(kernel, tmp_path)
    assert machine_code.count(code, r"MEMBAR|CCTL|ERRBAR|FENCE") == 0
    assert machine_code.count(code, r"LDL|STL") == 0
    inputs = kernel.constants["LOADS"] + 1 if loop == "backward" else kernel.constants["PRODUCTS"]
    polls = 0
    if exchange == "write_once":
        polls = -(-kernel.constants["SLICE_CHUNKS"] * kernel.ctas // kernel.threads)
    assert machine_code.count(code, r"LDG|LD\.") == inputs * kernel.constants["ITEMS"] + polls
    matrix_work = r"FFMA" if kernel.precision == "fp32" else r"HMMA"
    assert machine_code.count(code, matrix_work) >= kernel.product.weights


@pytest.mark.skipif(bool(machine_code.WHY_NOT), reason=machine_code.WHY_NOT or "-")
@pytest.mark.parametrize(("exchange", "ctas"), [("cluster_barrier", 8), ("counter", 16)])
def test_the_plain_barriers_have_the_fences_that_the_others_avoid(exchange, ctas, tmp_path):
    code = loop_of(kernel_of("forward", exchange, ctas, precision="bf16", tile=8), tmp_path)
    assert machine_code.count(code, r"MEMBAR|CCTL") > 0


def test_the_loop_is_found_in_a_listing():
    listing = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
    .L_x_1:
        /*0010*/                   LDG.E R0, [R2.64] ;
        /*0020*/              @!P0 HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
    .L_x_2:
        /*0030*/               @P1 BRA `(.L_x_2) ;
        /*0040*/               @P0 BRA `(.L_x_1) ;
        /*0050*/                   LDG.E R9, [R2.64] ;
    """
    loop = machine_code.longest_loop(*machine_code.parse(listing))
    assert (len(loop), machine_code.count(loop, "LDG"), machine_code.count(loop, "HMMA")) == (4, 1, 1)
