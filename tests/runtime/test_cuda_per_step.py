"""The per-step kernels of the cuda backend, run by the emulator, against the eager formula in float64."""

import weakref
from dataclasses import dataclass
from itertools import product

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


@pytest.fixture
def captured(monkeypatch):
    """The runs that were captured, on a device that replays them as they are."""
    found = []

    def capture(run):
        found.append(run)
        return run

    monkeypatch.setattr(graphs, "can_capture", lambda device: True)
    monkeypatch.setattr(graphs, "stream_of", lambda device: 0)
    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(graphs, "_all", weakref.WeakSet())
    return found


def test_graphs_have_memory_of_their_own(captured, monkeypatch):
    """A graph is replayed on the memory it was captured with; results must not change with the next call."""
    monkeypatch.setattr(graphs, "KEPT", 4)
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


@dataclass
class Model:
    """A cell that infers, with its weights."""

    name: str = "lstm"
    H: int = 4

    def __post_init__(self):
        cell = CELLS[self.name]
        self.fused = PerStep(cell, True, Sizes(self.H), torch.float32, Emulator())
        layer = cell.layer(3, self.H)
        self.weights = {k: v.detach() for k, v in layer._weights(layer._blocks()[0]).items()}
        self.cell = cell

    def infer(self, steps):
        states = [torch.zeros(2, self.H) for _ in self.cell.states]
        x, times = torch.randn(2 * steps, 3), times_of((steps, steps), False)
        return self.fused.forward(x, times, states, self.weights, keep=False)

    def bytes(self, steps):
        return self.fused.bytes("infer", times_of((steps, steps), False))


@pytest.mark.parametrize("limit", ["room", "free", "KEPT"])
def test_lengths_in_turn_are_not_captured_for_ever(captured, monkeypatch, limit):
    """With room for one shape of two, one is replayed; the other goes step by step."""
    one = Model()
    if limit == "KEPT":
        monkeypatch.setattr(graphs, "KEPT", 1)
    else:
        size = one.bytes(4) * (2 if limit == "free" else 1)
        left = lambda device: size - (2 * one.bytes(3) * len(captured) if limit == "free" else 0)  # noqa: E731
        monkeypatch.setattr(graphs, limit, left)
    for _ in range(100):
        for steps in (3, 4):
            one.infer(steps)
    assert len(captured) == 1


def test_many_lengths_have_graphs(captured):
    one = Model()
    for _ in range(5):
        for steps in range(1, 33):
            one.infer(steps)
    assert len(captured) == 32


@pytest.mark.parametrize("is_other", [False, True])
def test_graphs_out_of_use_make_room(captured, monkeypatch, is_other):
    """Those of other cells, too, unless another thread works with them."""
    monkeypatch.setattr(graphs, "IDLE", 20)
    monkeypatch.setattr(graphs, "_RETRY", 5)
    old = Model()
    new = Model("gru") if is_other else old
    monkeypatch.setattr(graphs, "room", lambda device: max(old.bytes(3), new.bytes(4)))
    monkeypatch.setattr(graphs, "_uses", iter(range(100000)))
    for _ in range(2):
        old.infer(3)
    assert len(captured) == 1
    if is_other:
        with old.fused.graphs.lock:
            for _ in range(200):
                new.infer(4)
        assert len(captured) == 1
    for _ in range(200):
        new.infer(4)
    assert len(captured) == 2
    assert not [key for key in old.fused.graphs._found if key[1] == 3]
    assert new.fused.graphs.held(torch.device("cpu")) == new.bytes(4)


@pytest.mark.parametrize("loop", ["infer", "forward", "backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["lstm", "gru", "layer_norm_lstm", "slstm", "focus"])
def test_bytes_are_those_of_the_memory(name, dtype, loop):
    sizes = Sizes(6, 0, options_of(CELLS[name], 6).get("num_heads", 1))
    one, times = PerStep(CELLS[name], True, sizes, dtype, Emulator()), times_of((5, 5, 5), False)
    memory = one.memory(loop, times, torch.empty(0))
    made = sum(value.nbytes for value in (*memory.tensors.values(), *memory.slabs))
    assert one.bytes(loop, times) == made


def test_large_layers_have_graphs(monkeypatch):
    """On a GPU of 80 GB: 512 steps of up to 256 sequences and 1024 units."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    large = type("Properties", (), {"total_memory": 79 << 30})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: large)
    graphs.room.cache_clear()
    left = graphs.room(torch.device("cuda", 0))
    graphs.room.cache_clear()
    for name, dtype in product(("lstm", "gru"), (torch.float32, torch.bfloat16)):
        one = PerStep(CELLS[name], True, Sizes(1024), dtype, Emulator())
        times = times_of((512,) * 256, False)
        assert sum(one.bytes(loop, times) for loop in ("infer", "forward", "backward")) <= left


def test_graphs_are_for_the_switches_they_were_captured_with(captured, monkeypatch):
    one, matmul = Model(), torch.backends.cuda.matmul
    switches = [f"allow_{kind}_reduced_precision_reduction" for kind in ("bf16", "fp16")]
    switches.append("allow_fp16_accumulation")
    for count, name in enumerate(["", *switches], 1):
        before = getattr(matmul, name) if name else None
        try:
            if name:
                setattr(matmul, name, not before)
            for _ in range(3):
                one.infer(3)
        finally:
            if name:
                setattr(matmul, name, before)
        assert len(captured) == count
