"""The per-step kernels of the cuda backend, run by the emulator, against the eager formula in float64."""

import numpy as np
import pytest
import torch

import cellfuse as cf
from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.runtime import graphs, op
from cellfuse.runtime.direction import Direction
from cellfuse.runtime.eager import run_direction
from cellfuse.runtime.per_step import PerStep
from cellfuse.runtime.times import Times
from codegen import cells_of_tests
from gpu.emulator.launcher import WHY_NOT, Emulator

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
CELLS = cf.cells.CELLS | cells_of_tests.CELLS
# Error against float64 that a run in each format may have, of values near 1.
CLOSE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 0.06, torch.float16: 0.008}


def options_of(cell, H):
    made = {"proj_size": max(1, H // 2)} if cell.projected else {}
    return made | ({"num_heads": 2} if cell.recurrence == "blocks" and H % 2 == 0 else {})


def times_of(lengths, is_reverse):
    T = max(lengths, default=0)
    if len(set(lengths)) == 1:
        return Times(torch.arange(T + 1) * len(lengths), len(lengths), is_reverse)
    sizes = torch.tensor([sum(length > t for length in lengths) for t in range(T)])
    return Times(torch.nn.functional.pad(sizes.cumsum(0), (1, 0)), len(lengths), is_reverse, sizes)


class NaNs(PerStep):
    """All memory is NaN at first."""

    def memory(self, loop, times, like, kept=None):
        made = super().memory(loop, times, like, kept)
        theirs = () if kept is None else kept.buffers
        mine = [value for name, value in made.tensors.items() if name not in theirs]
        for value in (*mine, *(made.slabs if kept is None else ())):
            value.fill_(float("nan"))
        return made


class OnEmulator(Direction):
    """With `made` as its runner."""

    def runner(self, x, times, is_operator, directions=1):
        return self.made


def compare(
    name, dtype, lengths=(3, 3), H=5, is_reverse=False, *, bias=True, recompute=False, factor=1, fused=None
):
    """Results and gradients of `fused`, or of a new runner, after they were compared with the formula's."""
    torch.manual_seed(0)
    cell = CELLS[name]
    layer = cell.layer(3, H, bias=bias, dtype=torch.float64, **options_of(cell, H))
    times = times_of(lengths, is_reverse)
    N, B = int(times.starts[-1]), len(lengths)
    shape = (N, 3) if times.batch_sizes is not None else (times.steps, B, 3)
    x = torch.randn(shape, dtype=torch.float64).to(dtype).double()
    states = [
        (torch.rand_like(s[0]) + 0.5).to(dtype).double() for s in layer.initial_states(B, x.reshape(-1, 3))
    ]
    weights = {k: v.detach().to(dtype).double() for k, v in layer._weights(layer._blocks()[0]).items()}
    leaves = [v.requires_grad_() for v in (x, *states, *weights.values())]
    case = layer._case(x, tuple(s[None] for s in states), times.batch_sizes)
    alive = None if times.batch_sizes is None else times.batch_sizes.tolist()
    want, finals = run_direction(case, weights, x, tuple(states), is_reverse, alive)
    grads = [torch.randn_like(v).to(dtype).double() for v in (want, *finals)]
    wanted = torch.autograd.grad((want, *finals), leaves, grads, allow_unused=True, materialize_grads=True)
    sizes = Sizes(H, layer.proj_size, layer.num_heads)
    fused = fused or NaNs(cell, bias, sizes, dtype, Emulator(), recompute)
    direction = OnEmulator(cell, sizes, bias, is_reverse, recompute, tuple(weights))
    object.__setattr__(direction, "made", fused)
    low = [v.detach().to(dtype) for v in leaves]
    with torch.no_grad():
        [(inferred, *states2)] = op.run([direction], low[0], [low[1:]], times.batch_sizes)
    low = [v.requires_grad_() for v in low]
    [(got, *finals2)] = op.run([direction], low[0], [low[1:]], times.batch_sizes)
    found = torch.autograd.grad(
        (got, *finals2), low, [g.to(dtype) for g in grads], allow_unused=True, materialize_grads=True
    )
    close, made = CLOSE[dtype] * factor, (inferred, *states2, got, *finals2, *found)
    for a, b in zip(made, (want, *finals) * 2 + wanted, strict=True):
        assert a.dtype == dtype
        assert a.shape == b.shape
        scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
        np.testing.assert_allclose(a.detach().double(), b.detach(), rtol=0, atol=close * scale)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CELLS)
def test_every_cell(name, dtype):
    compare(name, dtype, H=5 if dtype == torch.float32 else 6)


@pytest.mark.parametrize("is_reverse", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_every_cell_with_lengths(name, is_reverse):
    compare(name, torch.float64, (4, 2, 2, 1), 4, is_reverse)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["rnn", "gru", "lstm", "layer_norm_lstm", "slstm", "focus", "projecting"])
def test_16_bit_layers(name, dtype):
    compare(name, dtype, H=6)


@pytest.mark.parametrize("name", ["gru", "lstm", "wordy", "focus"])
@pytest.mark.parametrize("lengths", [(1,), (1, 1), (3,)])
def test_one_step_and_one_sequence(name, lengths):
    compare(name, torch.float64, lengths, 1 if len(lengths) == 1 else 5)


@pytest.mark.parametrize("name", ["gru", "lstm", "layer_norm_lstm", "mgu"])
def test_without_biases_and_with_recomputation(name):
    compare(name, torch.float64, bias=False)
    compare(name, torch.float64, (3, 2), recompute=True)


@pytest.mark.parametrize("name", ["layer_norm_lstm", "focus", "projecting", "gru"])
def test_more_units_than_threads(name):
    """Blocks of 256 threads go over the units more than once; rows fill several blocks."""
    compare(name, torch.float64, (2, 1), H=301, factor=10)


def test_graphs_have_memory_of_their_own(monkeypatch):
    """A graph is replayed on the memory it was captured with; results must not change with the next call."""
    captured = []

    def capture(run):
        captured.append(run)
        return run

    monkeypatch.setattr(graphs, "can_capture", lambda device: True)
    monkeypatch.setattr(graphs, "stream_of", lambda device: 0)
    monkeypatch.setattr(graphs, "capture", capture)
    for name in ("lstm", "leaky"):
        captured.clear()
        cell, weights = CELLS[name], None
        fused = NaNs(cell, True, Sizes(4), torch.float64, Emulator())
        for _ in range(3):
            compare(name, torch.float64, (3, 3), 4, fused=fused)
        assert len(captured) == 3  # infer, forward, backward; at the second call
        layer = cell.layer(3, 4, dtype=torch.float64)
        weights = {k: v.detach() for k, v in layer._weights(layer._blocks()[0]).items()}
        times = times_of((3, 3), False)
        made = []
        for _ in range(2):
            x, states = torch.randn(6, 3).double(), [torch.rand(2, 4).double() for _ in cell.states]
            output, finals, kept = fused.forward(x, times, states, weights, keep=True)
            made.append([output, *finals, *kept.slabs, *kept.buffers.values()])
            if len(made) == 1:
                first = [value.clone() for value in made[0]]
        assert len(captured) == 3
        assert all(map(torch.equal, made[0], first))
        for _ in range(graphs.KEPT + 1):
            steps = int(times.steps) + 1
            times = times_of((steps, steps), False)
            for _ in range(2):
                fused.forward(torch.randn(2 * steps, 3).double(), times, states, weights, keep=False)
        assert len(fused.graphs._found) == graphs.KEPT
