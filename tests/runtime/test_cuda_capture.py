"""CUDA graphs, streams and devices, on a GPU that is not there: see `fake_gpu`."""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import cellfuse as cf
from cellfuse.errors import BackendError
from cellfuse.runtime import cuda_step
from compare import assert_same
from runtime.emulated import emulated

real = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
from runtime.fake_gpu import Gpu, Violation  # noqa: E402

pytestmark = emulated
TIERS = {
    "one CTA": ("lstm", 6),
    "cluster": ("gru", 9),
    "grid": ("rnn", 10),
    "per step": ("layer_norm_lstm", 5),
}


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
    made = Gpu(real)
    with made.watched(monkeypatch):
        yield made


class Trained:
    """A layer on a device, its exact twin, and inputs of one shape."""

    def __init__(self, gpu, monkeypatch, tier, lengths=None, index=0):
        monkeypatch.setattr(cuda_step, "TIER", tier)
        name, H = TIERS[tier]
        options = {"num_layers": 1 if tier == "grid" else 2, "bidirectional": True}
        make = cf.cells.find(name).layer
        layer = make(3, H, backend="cuda", **options)
        self.exact = make(3, H, backend="eager", dtype=torch.float64, **options)
        self.exact.load_state_dict(layer.state_dict())
        self.gpu, self.lengths, self.layer = gpu, lengths, gpu.to(layer, index)
        self.input = self.on_device(self.draw(), index)

    def draw(self):
        """An input on the host."""
        x = torch.randn(3, 3, 3)
        if self.lengths is None:
            return x
        return pack_padded_sequence(x, torch.tensor(self.lengths), enforce_sorted=False)

    def on_device(self, value, index):
        """As a user brings it there before a capture."""
        if not isinstance(value, PackedSequence):
            return self.gpu.to(value, index)
        data, sizes, *orders = value
        return PackedSequence(self.gpu.to(data, index), sizes, *(self.gpu.to(v, index) for v in orders))

    def put(self, value):
        """New values into the memory of the input."""
        data, new = (v.data if isinstance(v, PackedSequence) else v for v in (self.input, value))
        data.copy_(new)

    def run(self):
        """Output, states, gradients of the input and of all parameters."""
        x = self.input.data if self.lengths else self.input
        leaf = x.detach().requires_grad_()
        given = PackedSequence(leaf, *self.input[1:]) if self.lengths else leaf
        output, finals = self.layer(given)
        output = output.data if self.lengths else output
        finals = finals if isinstance(finals, tuple) else (finals,)
        values = [output, *finals]
        loss = sum((value * value).sum() for value in values)
        return [*values, *torch.autograd.grad(loss, [leaf, *self.layer.parameters()])]

    def check(self, got, value):
        """Against the formula in float64, of an input on the host."""
        leaf = (value.data if self.lengths else value).double().requires_grad_()
        given = PackedSequence(leaf, *value[1:]) if self.lengths else leaf
        output, finals = self.exact(given)
        values = [
            output.data if self.lengths else output,
            *(finals if isinstance(finals, tuple) else (finals,)),
        ]
        loss = sum((value * value).sum() for value in values)
        want = [*values, *torch.autograd.grad(loss, [leaf, *self.exact.parameters()])]
        for a, b in zip(got, want, strict=True):
            a = torch.empty(a.shape).copy_(a)
            assert_same(a, b, tolerance=2e-5 * max(1.0, float(b.detach().abs().max())))


@pytest.mark.parametrize("is_warm", [True, False])
@pytest.mark.parametrize("lengths", [None, (2, 3, 1)])
@pytest.mark.parametrize("tier", TIERS)
def test_a_user_captures_forward_and_backward(gpu, monkeypatch, tier, lengths, is_warm):
    one = Trained(gpu, monkeypatch, tier, lengths)
    if is_warm:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            one.run()
        torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with gpu.capture(graph, is_kept=False):
        made = one.run()
    assert gpu.launches
    for _ in range(2):
        value = one.draw()
        one.put(value)
        graph.replay()
        one.check(made, value)


def test_forward_alone_and_states_given(gpu, monkeypatch):
    one = Trained(gpu, monkeypatch, "cluster")
    states = gpu.to(torch.randn(4, 3, 9))
    graph = torch.cuda.CUDAGraph()
    with gpu.capture(graph, is_kept=False), torch.no_grad():
        output, _ = one.layer(one.input, states)
    graph.replay()
    x, h = (torch.empty(v.shape).copy_(v).double() for v in (one.input, states))
    assert_same(torch.empty(output.shape).copy_(output), one.exact(x, h)[0], tolerance=5e-6)


def test_graphs_of_our_own_hold_nothing_that_changes(gpu, monkeypatch):
    """The second call of a shape is captured by the layer itself."""
    one = Trained(gpu, monkeypatch, "per step")
    for _ in range(4):
        value = one.draw()
        one.put(value)
        one.check(one.run(), value)
    assert len(gpu.captures) == 4  # two loops in two directions; both layers share them


def test_lengths_in_turn_are_captured_once(gpu, monkeypatch):
    """Two loops, two directions, two lengths."""
    one = Trained(gpu, monkeypatch, "per step")
    inputs = [one.input, gpu.to(torch.randn(4, 3, 3))]
    for _ in range(5):
        for one.input in inputs:
            one.run()
    assert len(gpu.captures) == 8


def test_a_graph_of_our_own_is_not_used_in_a_users(gpu, monkeypatch):
    one = Trained(gpu, monkeypatch, "per step")
    for _ in range(2):
        one.run()
    found, graph = len(gpu.captures), torch.cuda.CUDAGraph()
    with gpu.capture(graph, is_kept=False):
        made = one.run()
    assert len(gpu.captures) == found + 1
    value = one.draw()
    one.put(value)
    graph.replay()
    one.check(made, value)


@pytest.mark.parametrize("lengths", [None, (3, 3, 1)])
@pytest.mark.parametrize("tier", TIERS)
def test_streams_share_nothing(gpu, monkeypatch, tier, lengths):
    """Neither waits for the other; each launch is on the current one, which the watch looks at."""
    one = Trained(gpu, monkeypatch, tier, lengths)
    streams = [torch.cuda.Stream() for _ in range(2)]
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
    for _ in range(3):
        for stream in streams:
            with torch.cuda.stream(stream):
                made = one.run()
    used = {stream for _, stream, _ in gpu.launches}
    assert used >= {stream.cuda_stream for stream in streams}
    torch.cuda.synchronize()
    one.check(made, cpu(one.input))


def cpu(value):
    """The values on the host."""
    if isinstance(value, PackedSequence):
        return PackedSequence(cpu(value.data), value.batch_sizes, *(cpu(v) for v in value[2:]))
    return torch.empty(value.shape, dtype=value.dtype).copy_(value)


@pytest.mark.parametrize("lengths", [None, (2, 3, 1)])
@pytest.mark.parametrize("tier", TIERS)
def test_a_device_that_is_not_the_current_one(gpu, monkeypatch, tier, lengths):
    one = Trained(gpu, monkeypatch, tier, lengths, index=1)
    for _ in range(2):
        value = one.draw()
        one.put(value)
        one.check(one.run(), value)
    assert {device for *_, device in gpu.launches} == {1}
    assert gpu.device == 0


def test_operators_go_to_the_device_of_their_tensors(gpu, monkeypatch):
    """A compiled graph calls them without a guard."""
    one = Trained(gpu, monkeypatch, "one CTA", index=1)
    calls, run = [], cf.runtime.library.direct
    monkeypatch.setattr(cf.runtime.library, "direct", lambda *given: calls.append(given) or run(*given))
    one.run()
    (((direction, _), _), values), *_ = calls
    count = 1 + (len(values) - 1) // 2
    lists = cf.runtime.library._lists(direction, values[:count])
    gpu.launches.clear()
    with torch.no_grad():
        made = cf.runtime.library._forward(*lists, None, direction.text, True)
        kept = made[3:]
        cf.runtime.library._backward(made[:3], *lists, None, kept, direction.text)
    assert [device for *_, device in gpu.launches] == [1, 1]


def test_resets_in_a_capture_say_why_not(gpu, monkeypatch):
    one = Trained(gpu, monkeypatch, "one CTA")
    reset = gpu.to(torch.zeros(3, 3, dtype=torch.bool))
    with (
        gpu.capture(torch.cuda.CUDAGraph()),
        pytest.raises(BackendError, match="Capture calls without reset="),
    ):
        one.layer(one.input, reset=reset)


def test_a_step_with_resets_can_be_captured(gpu, monkeypatch):
    monkeypatch.setattr(cuda_step, "TIER", "one CTA")
    layer = cf.LSTM(3, 6, backend="cuda")
    exact = cf.LSTM(3, 6, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    layer, x = gpu.to(layer), gpu.to(torch.randn(2, 3))
    states = tuple(gpu.to(torch.randn(1, 2, 6)) for _ in range(2))
    reset = gpu.to(torch.tensor([True, False]))
    graph = torch.cuda.CUDAGraph()
    with gpu.capture(graph, is_kept=False), torch.no_grad():
        y, _ = layer.step(x, states, reset)
    for _ in range(2):
        reset.logical_not_()
        graph.replay()
        given = tuple(cpu(s).double() for s in states)
        assert_same(cpu(y), exact.step(cpu(x).double(), given, cpu(reset))[0], tolerance=5e-6)


@pytest.mark.parametrize("tier", ["cluster", "grid"])
def test_a_plan_for_another_device_than_the_current_one(gpu, monkeypatch, tier):
    """It loads kernels and asks how many blocks find room, as torch.compile's first pass does, too."""
    run = Trained(gpu, monkeypatch, tier, index=1)
    assert f"cuda, {tier}" in run.layer.plan(run.input)
    assert "cuModuleLoadData" in gpu.api[1].calls
    assert "cuModuleLoadData" not in gpu.api[0].calls
    assert (gpu.device, gpu.contexts) == (0, [])


# the watch itself


FORBIDDEN = {
    "a value": lambda x: x.sum().item(),
    "a list": lambda x: x.tolist(),
    "a number": lambda x: int(x.sum()),
    "a truth": lambda x: bool(x.any()),
    "to the host": lambda x: x.cpu(),
    "to the host by name": lambda x: x.to("cpu"),
    "from the host": lambda x: torch.ones(3).to(x.device),
    "from the host in place": lambda x: x.copy_(torch.ones(3)),
    "a new tensor": lambda x: x.new_tensor([1.0]),
    "a new tensor by name": lambda x: torch.tensor([1.0], device=x.device),
    "a mask": lambda x: x[x > 0],
    "an index on the host": lambda x: x[torch.tensor([0])],
    "a search": lambda x: x.nonzero(),
    "comparing": lambda x: torch.equal(x, x),
    "waiting": lambda x: torch.cuda.synchronize(),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_watch_sees(gpu, what):
    x = gpu.to(torch.randn(3))
    FORBIDDEN[what](x)
    with gpu.capture(torch.cuda.CUDAGraph()), pytest.raises(Violation):
        FORBIDDEN[what](x)


def test_the_watch_sees_races_and_mixtures(gpu):
    x = gpu.to(torch.randn(3))
    shared, stream = x + 1, torch.cuda.Stream()
    with torch.cuda.stream(stream), pytest.raises(Violation, match="has not waited"):
        shared.add_(1)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        shared.add_(1)
    with pytest.raises(Violation, match="on the host and on a device"):
        x + torch.ones(3)
    with pytest.raises(Violation, match="of tensors on"):
        x + gpu.to(torch.ones(3), 1)
    with gpu.capture(torch.cuda.CUDAGraph(), is_kept=False), pytest.raises(Violation, match="from before"):
        shared.add_(1)
    for name in ("cuModuleLoadData", "cuLaunchKernelEx"):
        with pytest.raises(Violation, match="for device 1 while device 0 is current"):
            getattr(gpu.api[1], name)(None)


def test_the_watch_replays_what_was_captured(gpu):
    x, graph = gpu.to(torch.ones(3)), torch.cuda.CUDAGraph()
    with gpu.capture(graph):
        y = x * 2
        y.add_(x.sum())
    assert cpu(y).isnan().all()
    x.copy_(gpu.to(torch.arange(3.0)))
    graph.replay()
    assert cpu(y).tolist() == [3.0, 5.0, 7.0]
