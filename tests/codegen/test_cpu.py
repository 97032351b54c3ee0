"""CPU kernels against the interpreted Program, with guards around every buffer."""

import numpy as np
import pytest

import cellfuse as cf
from cellfuse.codegen.cpu import functions
from cellfuse.codegen.cpu.compile import Kernel
from cellfuse.codegen.cpu.layout import Layout, Sizes
from cellfuse.codegen.cpu.spell import ELSEWHERE, SPELL
from cellfuse.codegen.cpu.target import TARGETS, host
from cellfuse.codegen.interpret import Run
from cellfuse.codegen.lower import lower
from cellfuse.graph.ops import OPS
from codegen import cells_of_tests
from codegen.kernel_runner import KernelRun

CELLS = cf.cells.CELLS | cells_of_tests.CELLS
WIDEST = host()
RUNNABLE = [
    t
    for t in ("avx512", "avx512-intel", "avx2", "sse")
    if TARGETS[t].bytes <= WIDEST.bytes and WIDEST.name != "neon"
]


def fixed_values(program, sizes, rng):
    H, P, N = sizes.hidden, sizes.projected, sizes.heads
    axes = {"H": H, "P": P, "N": N, "K": H // N}
    return {
        leaf.label: rng.uniform(-1, 1, tuple(axes[a] for a in leaf.shape))
        / (1 if len(leaf.shape) < 2 else H**0.5)
        for leaf in program.step.inputs
        if leaf.role not in ("input product", "state")
    } | {bias: np.zeros(H) for bias, _ in program.moved}


def sizes_for(cell, H):
    projected = max(1, H // 2) if cell.projected else 0
    heads = 2 if cell.recurrence == "blocks" and H % 2 == 0 else 1
    return Sizes(H, projected, heads)


def compare(name, H, T, B, target, bits, is_reverse=False, recompute=False):
    cell, rng = CELLS[name], np.random.default_rng(0)
    program = lower(cell.step, recompute=recompute)
    sizes = sizes_for(cell, H)
    fixed = fixed_values(program, sizes, rng)
    axes = {"H": sizes.hidden, "P": sizes.projected}
    products = [rng.normal(size=(T, B, H)) for _ in program.inputs]
    states = [rng.uniform(0.5, 1, (B, axes[s.shape[0]])) for s in program.step.of_role("state")]
    turn = slice(None, None, -1) if is_reverse else slice(None)
    want = Run(program, [p[turn] for p in products], states, fixed, axes, T)
    kernel = Kernel(Layout(program, sizes, bits, TARGETS[target]))
    got = KernelRun(kernel, products, states, fixed, T, is_reverse)
    close = {"rtol": 1e-9, "atol": 1e-10} if bits == 64 else {"rtol": 3e-4, "atol": 3e-5}
    for keep in (False, True):
        output, finals = want.forward(keep=keep)
        output2, finals2 = got.forward(keep=keep)
        np.testing.assert_allclose(output2, output[turn], **close)
        for a, b in zip(finals2, finals, strict=True):
            np.testing.assert_allclose(a, b, **close)
    grad = rng.normal(size=output.shape)
    grads = [rng.normal(size=f.shape) for f in finals]
    found = got.backward(grad, grads)
    want.backward(grad[turn], grads)
    for (name, k), value in found.items():
        wanted = want.memory[name][k]
        np.testing.assert_allclose(
            value, wanted[turn] if name != "carry" else wanted, **close, err_msg=f"{name} {k}"
        )


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", CELLS)
def test_kernel_computes_what_the_program_says(name, bits):
    H, T, B = {32: (6, 3, 5), 64: (32, 4, 13)}[bits]
    compare(name, H, T, B, WIDEST.name, bits)


@pytest.mark.parametrize("name", ["lstm", "gru", "layer_norm_lstm"])
def test_one_unit_of_one_sequence(name):
    compare(name, 1, 2, 1, WIDEST.name, 32)


@pytest.mark.parametrize("target", RUNNABLE)
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "focus", "slstm"])
def test_every_vector_width(name, target):
    compare(name, 34, 3, 7, target, 32)
    compare(name, 64, 2, 1, target, 64)


@pytest.mark.parametrize("name", ["lstm", "mgu", "layer_norm_lstm"])
def test_reverse_direction_and_recomputation(name):
    compare(name, 20, 4, 3, WIDEST.name, 32, is_reverse=True)
    compare(name, 20, 4, 3, WIDEST.name, 32, recompute=True)


def test_many_rows_and_long_sums():
    compare("gru", 48, 2, 150, WIDEST.name, 32)
    compare("lstm", 560, 2, 2, WIDEST.name, 64)


def test_every_operation_has_a_spelling():
    elsewhere = {name for names in ELSEWHERE.values() for name in names}
    assert set(SPELL) | elsewhere == set(OPS)
    assert not set(SPELL) & elsewhere
    assert functions.FORMATS.keys() == {32, 64}
