"""Zoneout and recurrent dropout on GPU kernels, run by the emulator: against hand-written references."""

import pytest
import torch

import cellfuse as cf
from cellfuse.cells import CELLS
from cellfuse.runtime import cuda_step, graphs
from compare import assert_as_accurate, assert_same
from masked import LENGTHS, I, assert_reference, inputs, make, run
from runtime.emulated import emulated

pytestmark = emulated
WHY = "has masks of zoneout or recurrent dropout, which kernels of the whole loop do not read"


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_step_by_step(device, name):
    layer = make(name, backend="cuda")
    assert_reference(layer)
    assert_reference(layer, LENGTHS)


@pytest.mark.parametrize("name", ["gru", "projected_lstm", "slstm"])
def test_stacks_in_both_directions(device, name):
    assert_reference(make(name, 6, "cuda", num_layers=2, bidirectional=True), LENGTHS)
    assert_reference(make(name, 6, "cuda", recompute=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_layers(device, dtype, monkeypatch):
    """As accurate as the formula in the same precision, with the same masks."""
    monkeypatch.setattr(
        torch, "bernoulli", lambda like, p: (torch.rand(like.shape, dtype=torch.float64) < p).to(like.dtype)
    )
    made = []
    for backend, precision in (("cuda", dtype), ("eager", torch.float64), ("eager", dtype)):
        # 1 / (1 - p) is exact in 16 bits.
        layer = make("lstm", 6, backend, zoneout=0.25, dropout=0.5).to(dtype).to(precision)
        x, *hx = inputs(layer)
        x, *hx = (value.detach().to(dtype).to(precision).requires_grad_() for value in (x, *hx))
        values = run(layer, x, hx)
        loss = sum(value.double().sin().sum() for value in values)
        made.append([*values, *torch.autograd.grad(loss, [x, *hx, *layer.parameters()])])
    for got, want, plain in zip(*made, strict=True):
        assert got.dtype == dtype
        assert_as_accurate(got, want, plain, floor=4 * torch.finfo(dtype).eps)


def test_the_plan_says_why_the_next_tier_takes_it(launcher, monkeypatch):
    monkeypatch.setattr(cuda_step, "TIER", "")
    layer, x = cf.LSTM(I, 6, zoneout=0.1, backend="cuda"), torch.randn(3, 2, I)
    assert layer.plan(x) == f"cuda, per step: lstm {WHY}"
    layer.eval()
    assert layer.plan(x).startswith("cuda, one CTA")


@pytest.mark.parametrize("tier", ["one CTA", "grid"])
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_in_evaluation_kernels_of_the_whole_loop_compute_the_expectation(launcher, monkeypatch, name, tier):
    monkeypatch.setattr(cuda_step, "TIER", tier)
    ours, eager = (make(name, 6, backend, dtype=torch.float32).eval() for backend in ("cuda", "eager"))
    x, *hx = (value.detach().float() for value in inputs(ours))
    assert tier in ours.plan(x)
    for a, b in zip(run(ours, x, hx), run(eager, x, hx), strict=True):
        assert_same(a, b, tolerance=2e-6)
    assert launcher.launched


def test_graphs_read_the_masks_of_the_call(device, monkeypatch):
    """Masks are copied to where a captured graph reads them."""
    monkeypatch.setattr(graphs, "can_capture", lambda device: True)
    monkeypatch.setattr(graphs, "stream_of", lambda device: 0)
    captured = []
    monkeypatch.setattr(graphs, "capture", lambda run: captured.append(run) or run)
    layer = make("lstm", backend="cuda")
    for seed in range(4):
        assert_reference(layer, seed=seed)
    assert len(captured) == 2  # forward and backward; at the second call
