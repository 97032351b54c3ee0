"""The cuda backend through the layer: tensors of the CPU, kernels run by the emulator."""

import threading
import time

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import cellfuse as cf
from cellfuse.codegen.cuda.plan import Device
from cellfuse.errors import BackendError
from cellfuse.runtime import cuda, cuda_driver, cuda_step, precision
from compare import assert_same
from runtime.emulated import Emulated, emulated, pair, results


@emulated
@pytest.mark.parametrize("name", ["lstm", "mgu", "slstm", "layer_norm_lstm", "projected_lstm", "mingru"])
def test_layers_directions_and_lengths(device, name):
    ours, eager = pair(name, 3, 4, num_layers=2, bidirectional=True)
    x = torch.randn(4, 3, 3, dtype=torch.float64)
    states = tuple(torch.rand_like(s).requires_grad_() for s in ours.initial_states(3, x))
    states = states if len(states) > 1 else states[0]
    packed = pack_padded_sequence(x, torch.tensor([2, 4, 1]), enforce_sorted=False)
    for input in (x, packed):
        for got, want in zip(results(ours, input, states), results(eager, input, states), strict=True):
            assert_same(got, want, tolerance=1e-11)
    with torch.no_grad():
        assert_same(ours(x)[0], eager(x)[0])


@emulated
@pytest.mark.parametrize("tier", ["one CTA", "cluster", "grid"])
@pytest.mark.parametrize("name", ["rnn", "gru", "lstm", "slstm", "peephole_lstm", "indrnn"])
def test_whole_loops(device, monkeypatch, name, tier):
    monkeypatch.setattr(cuda_step, "TIER", tier)
    H = 40 if tier == "grid" else 10
    ours, eager = pair(name, 3, H, num_layers=1 if tier == "grid" else 2, bidirectional=True)
    eager.load_state_dict(ours.float().state_dict())
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    try:
        x = torch.randn(3, 3, 3)
        if name == "indrnn" and tier != "one CTA":  # no product whose weights could be spread
            assert ours.plan(x).startswith("cuda, per step: ")
        else:
            assert ours.plan(x).startswith(f"cuda, {tier}: fp32, ")
            assert ours.plan(x).endswith("; both directions in one launch")
        states = tuple(torch.rand_like(s).requires_grad_() for s in ours.initial_states(3, x))
        packed = pack_padded_sequence(x, torch.tensor([2, 3, 1]), enforce_sorted=False)
        for input in (x, packed):
            got = results(ours, input, states if len(states) > 1 else states[0])
            exact = tuple(s.detach().double().requires_grad_() for s in states)
            double = input.to(torch.float64)
            want = results(eager, double, exact if len(exact) > 1 else exact[0])
            for a, b in zip(got, want, strict=True):
                assert a.dtype == torch.float32
                assert_same(a, b, tolerance=3e-6 * max(1.0, float(b.detach().abs().max())))
        with torch.no_grad():
            assert_same(ours(x)[0], eager(x.double())[0], tolerance=3e-6)
    finally:
        torch.backends.cudnn.rnn.fp32_precision = "tf32"


@emulated
@pytest.mark.parametrize(("dtype", "close"), [("tf32", 4e-3), (torch.bfloat16, 0.06), (torch.float16, 0.01)])
def test_whole_loops_on_tensor_cores(device, monkeypatch, dtype, close):
    monkeypatch.setattr(cuda_step, "TIER", "")
    ours, eager = pair("lstm", 3, 24)
    ours = ours.float() if dtype == "tf32" else ours.to(dtype)
    eager.load_state_dict(ours.state_dict())
    x = torch.randn(3, 9, 3).to(next(ours.parameters()).dtype)
    assert "per step" not in ours.plan(x)
    assert {"tf32": "tf32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype] in ours.plan(x)
    for a, b in zip(results(ours, x), results(eager, x.double()), strict=True):
        assert a.dtype == x.dtype
        assert_same(a, b, tolerance=close * max(1.0, float(b.detach().abs().max())))


@emulated
@pytest.mark.parametrize("tier", ["cluster", "grid"])
def test_a_batch_in_waves(device, monkeypatch, tier):
    """Where not all sequences find room at the same time, launches follow each other."""
    few = Device((9, 0), 2, 227 * 1024, ((2, 1),))
    monkeypatch.setattr(cuda_step, "TIER", tier)
    monkeypatch.setattr(cuda_step, "device_of", lambda device: few)
    ours, eager = pair("gru", 3, 40, dtype=torch.bfloat16)
    eager.load_state_dict(ours.state_dict())
    eager.double()
    x = torch.randn(2, 37, 3, dtype=torch.bfloat16)
    assert "waves" in ours.plan(x)
    for a, b in zip(results(ours, x), results(eager, x.double()), strict=True):
        assert_same(a, b, tolerance=0.06 * max(1.0, float(b.detach().abs().max())))


@emulated
def test_a_cluster_that_finds_no_room_is_passed_over(device, monkeypatch):
    monkeypatch.setattr(cuda_step, "TIER", "")
    monkeypatch.setattr(Emulated, "fits", lambda self, kernel, entry, blocks: kernel.cluster <= 8)
    layer = cf.cells.find("lstm").layer(3, 256, backend="cuda", dtype=torch.bfloat16)
    plan = layer.plan(torch.randn(2, 4, 3, dtype=torch.bfloat16))
    assert "a cluster of " in plan
    assert "a cluster of 16" not in plan


@emulated
def test_plans_say_why(device, monkeypatch):
    monkeypatch.setattr(cuda_step, "TIER", "")
    x = torch.randn(2, 4, 3)

    def make(name, H, dtype=None):
        return cf.cells.find(name).layer(3, H, backend="cuda", dtype=dtype)

    assert "layer normalisation" in make("layer_norm_lstm", 8).plan(x)
    assert "no fp64" in make("gru", 8, torch.float64).plan(x.double())
    assert "too large" in make("lstm", 5000).plan(x)
    for H, tier in ((32, "one CTA"), (256, "cluster"), (1024, "grid")):
        plan = make("lstm", H, torch.bfloat16).plan(x.bfloat16())
        assert plan.startswith(f"cuda, {tier}"), plan


@emulated
@pytest.mark.parametrize(("T", "B"), [(0, 2), (3, 0), (1, 1)])
def test_empty_and_tiny_sequences(device, T, B):
    ours, eager = pair("gru", 3, 4)
    x = torch.randn(T, B, 3, dtype=torch.float64)
    for got, want in zip(results(ours, x), results(eager, x), strict=True):
        assert_same(got, want)


@emulated
def test_second_derivatives(device):
    ours, _ = pair("gru", 2, 3)
    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: ours(x)[0], x)


@emulated
@pytest.mark.parametrize("name", ["lstm", "layer_norm_lstm"])
def test_one_node_in_the_graph_of_torch_compile(device, name):
    ours, eager = pair(name, 3, 4, bidirectional=True)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager", dynamic=True)
    for T in (2, 5):
        x = torch.randn(T, 2, 3, dtype=torch.float64)
        for got, want in zip(results(compiled, x), results(eager, x), strict=True):
            assert_same(got, want, tolerance=1e-11)


@emulated
def test_an_export_says_why_not(device):
    ours, _ = pair("mgu", 3, 4)
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    with pytest.raises(Exception, match="an exported program must run in other processes"):
        torch.export.export(ours, (x,))


@emulated
def test_16_bits_under_torch_compile(device):
    """States of 16-bit layers are float32 between the loops, which the graph has to know."""
    ours, _ = pair("lstm", 3, 4, dtype=torch.bfloat16)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 2, 3, dtype=torch.bfloat16)
    for got, want in zip(results(compiled, x), results(ours, x), strict=True):
        assert got.dtype == torch.bfloat16
        assert torch.equal(got, want)


@emulated
def test_autocast(device):
    ours, _ = pair("mgu", 3, 4, dtype=torch.float32)
    x = torch.randn(3, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        output = ours(x)[0]
        assert torch.equal(ours(x.bfloat16())[0], output)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), ours(x)[0], rtol=0, atol=0.05)
    output.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in ours.parameters())


@emulated
def test_twice_the_same_bits(device):
    ours, _ = pair("layer_norm_lstm", 3, 40, dtype=torch.float32)
    x = torch.randn(4, 3, 3)
    for a, b in zip(results(ours, x), results(ours, x), strict=True):
        assert torch.equal(a, b)


@emulated
def test_auto_takes_it_for_cells_that_torch_lacks(device):
    x = torch.randn(2, 1, 3)
    mgu = cf.cells.find("mgu").layer(3, 4, backend="cuda")
    assert mgu.why_not(x)["cuda"] == ""
    assert mgu.plan(x).startswith("cuda, per step: ")
    assert "cuDNN" in cf.LSTM(3, 4).why_not(x)["cuda"]


def test_a_machine_without_a_gpu_says_so():
    layer = cf.LSTM(3, 4, backend="cuda")
    x = torch.randn(2, 1, 3)
    assert layer.why_not(x)["cuda"] == "the input is on cpu, not on a CUDA device"
    with pytest.raises(BackendError, match="backend='cuda' cannot run this: the input is on cpu"):
        layer(x)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_why_not_without_a_driver():
    assert cuda_driver.why_not() == "torch finds no CUDA device"


@emulated
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda layer, x: (layer.half(), x.half()), ""),
        (lambda layer, x: (layer, x.to(torch.int32)), "int32"),
    ],
)
def test_dtypes(device, change, why):
    layer, x = change(cf.GRU(3, 4), torch.randn(2, 1, 3))
    case = layer._case(x, layer.initial_states(1, x))
    assert why in cuda.why_not(case)
    assert bool(why) == bool(cuda.why_not(case))


def test_products_follow_the_switches_of_torch():
    lstm, mgu = cf.cells.find("lstm"), cf.cells.find("mgu")
    matmul, rnn = torch.backends.cuda.matmul, torch.backends.cudnn.rnn
    before = matmul.fp32_precision, rnn.fp32_precision
    try:
        assert precision.is_tf32(lstm)
        assert not precision.is_tf32(mgu)
        with precision.matmul_in(True):
            assert matmul.fp32_precision == "tf32"
        assert matmul.fp32_precision == before[0]
        assert not matmul.allow_tf32
        rnn.fp32_precision = "ieee"
        assert not precision.is_tf32(lstm)
        matmul.fp32_precision = "tf32"
        assert precision.is_tf32(mgu)
        with precision.matmul_in(False):
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.allow_tf32 = False
        matmul.fp32_precision, rnn.fp32_precision = before


@pytest.fixture
def matmul():
    found = torch.backends.cuda.matmul
    before = found.fp32_precision
    yield found
    found.allow_tf32 = False
    found.fp32_precision = before


def test_threads_with_other_wishes_wait(matmul):
    """Each computes with the setting it wished for, and the user's is there again at the end."""
    before, seen, wrong = matmul.fp32_precision, [], []
    mgu = cf.cells.find("mgu")

    def work(tf32):
        for _ in range(300):
            with precision.matmul_in(tf32):
                for _ in range(3):
                    seen.append(tf32)
                    if (matmul.fp32_precision == "tf32") != tf32:
                        wrong.append("setting")
                    if precision.is_tf32(mgu):
                        wrong.append("the user's")
                    time.sleep(0)

    threads = [threading.Thread(target=work, args=(k % 2 == 0,), daemon=True) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not wrong
    assert len(seen) == 4 * 300 * 3
    assert matmul.fp32_precision == before


def test_threads_with_one_wish_run_together(matmul):
    before, meeting = matmul.fp32_precision, threading.Barrier(2, timeout=10)
    done = []

    def work(is_last):
        with precision.matmul_in(True):
            meeting.wait()
            if is_last:
                time.sleep(0.05)
            done.append(matmul.fp32_precision)

    threads = [threading.Thread(target=work, args=(k == 1,), daemon=True) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert done == ["tf32", "tf32"]
    assert matmul.fp32_precision == before


def test_one_thread_cannot_wish_for_both(matmul):
    before = matmul.fp32_precision
    with precision.matmul_in(True), precision.matmul_in(True):
        with pytest.raises(RuntimeError, match="at once"), precision.matmul_in(False):
            pass
        assert matmul.fp32_precision == "tf32"
    assert matmul.fp32_precision == before
