"""The layer as a module: names, storage, streaming, transforms, hooks."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import cellfuse as cf
from compare import assert_same, small_layer

THREE = ["RNN", "GRU", "LSTM"]


def test_the_tutorials_stacked_lstm():
    rnn = cf.LSTM(input_size=10, hidden_size=20, num_layers=2)
    output, (hn, cn) = rnn(torch.randn(5, 3, 10), (torch.randn(2, 3, 20), torch.randn(2, 3, 20)))
    assert (output.shape, hn.shape, cn.shape) == ((5, 3, 20), (2, 3, 20), (2, 3, 20))
    assert torch.equal(hn[1], output[4])


def test_the_tutorials_bidirectional_lstm():
    rnn = cf.LSTM(input_size=10, hidden_size=20, num_layers=2, bidirectional=True)
    output, (hn, cn) = rnn(torch.randn(5, 3, 10), (torch.randn(4, 3, 20), torch.randn(4, 3, 20)))
    assert (output.shape, hn.shape, cn.shape) == ((5, 3, 40), (4, 3, 20), (4, 3, 20))
    assert torch.equal(hn[2], output[4, :, :20])
    assert torch.equal(hn[3], output[0, :, 20:])


@pytest.mark.parametrize("name", THREE)
def test_same_seed_same_weights_same_names_same_repr(name):
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5}
    torch.manual_seed(3)
    theirs = getattr(nn, name)(4, 6, **options)
    torch.manual_seed(3)
    ours = getattr(cf, name)(4, 6, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)
    assert repr(ours) == repr(theirs)
    assert ours.mode == theirs.mode
    assert [[tuple(w.shape) for w in row] for row in ours.all_weights] == [
        [tuple(w.shape) for w in row] for row in theirs.all_weights
    ]
    theirs.load_state_dict(ours.state_dict())
    ours.flatten_parameters()
    assert isinstance(ours, nn.RNNBase)


def test_positional_arguments_are_torchs():
    ours, theirs = cf.RNN(3, 4, 2, "relu", False, True), nn.RNN(3, 4, 2, "relu", False, True)
    assert repr(ours) == repr(theirs)
    assert repr(cf.LSTM(3, 4, 2, False, True, 0.5, True, 2)) == repr(
        nn.LSTM(3, 4, 2, False, True, 0.5, True, 2)
    )


def test_dropout_with_one_layer_warns_as_torch_does():
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        cf.GRU(3, 4, dropout=0.5)


@pytest.mark.parametrize("name", THREE)
def test_pickle_deepcopy_and_save(name):
    layer = getattr(cf, name)(3, 4, 2)
    x = torch.randn(5, 2, 3)
    want = layer(x)[0]
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    weights = io.BytesIO()
    torch.save(layer.state_dict(), weights)
    weights.seek(0)
    fresh = getattr(cf, name)(3, 4, 2)
    fresh.load_state_dict(torch.load(weights, weights_only=True))
    loaded = torch.load(buffer, weights_only=False)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded, fresh):
        assert torch.equal(other(x)[0], want)


def test_parametrisations_are_respected():
    ours, theirs = cf.LSTM(3, 4), nn.LSTM(3, 4)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 2, 3)
    for layer in (ours, theirs):
        torch.manual_seed(0)
        parametrizations.spectral_norm(layer, "weight_hh_l0").eval()
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])
    assert parametrize.is_parametrized(ours, "weight_hh_l0")


def test_weights_may_be_tied_replaced_and_frozen():
    one, other = cf.GRU(3, 4), cf.GRU(3, 4)
    other.weight_hh_l0 = one.weight_hh_l0
    x = torch.randn(5, 2, 3)
    (one(x)[0].sum() + other(x)[0].sum()).backward()
    assert one.weight_hh_l0.grad is other.weight_hh_l0.grad
    frozen = cf.LSTM(3, 4).requires_grad_(False)
    x.requires_grad_()
    frozen.eval()(x)[0].sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in frozen.parameters())


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_torch_func_equals_plain_autograd(name, backend):
    layer = getattr(cf, name)(3, 4, dtype=torch.float64, backend=backend)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    weights = dict(layer.named_parameters())

    def loss(weights, x):
        return torch.func.functional_call(layer, weights, (x,))[0].pow(2).sum()

    got = torch.func.grad(loss)(weights, x)
    want = torch.autograd.grad(loss(weights, x), list(weights.values()))
    for a, b in zip(got.values(), want, strict=True):
        assert_same(a, b)
    one = x.transpose(0, 1).unsqueeze(2)  # [B, T, 1, I]
    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, one)
    assert_same(per_sample["weight_hh_l0"].sum(0), want[1])
    tangent = torch.randn_like(x)
    _, forward = torch.func.jvp(lambda v: loss(weights, v), (x,), (tangent,))
    v = x.clone().requires_grad_()
    assert_same(forward, (torch.autograd.grad(loss(weights, v), v)[0] * tangent).sum())


def test_torch_func_refuses_torchs_operator_that_was_asked_for():
    layer = cf.LSTM(3, 4, backend="aten")
    with pytest.raises(cf.errors.BackendError, match=r"torch\.func"):
        torch.func.vmap(lambda v: layer(v)[0])(torch.randn(2, 5, 1, 3))


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_compile_and_export(name):
    layer = getattr(cf, name)(3, 4, 2, dropout=0.5)
    x = torch.randn(5, 2, 3)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.manual_seed(1)
    got = compiled(x)[0]
    torch.manual_seed(1)
    torch.testing.assert_close(got, layer(x)[0])
    program = torch.export.export(layer.eval(), (x,))
    torch.testing.assert_close(program.module()(x)[0], layer(x)[0])


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_autocast_gives_its_dtype(backend):
    ours, theirs = cf.LSTM(3, 4, backend=backend), nn.LSTM(3, 4)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        got = ours(x)[0]
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), theirs(x)[0], rtol=0.05, atol=0.02)
    got.float().sum().backward()
    assert ours.weight_hh_l0.grad.dtype == torch.float32


def test_moving_the_layer():
    layer = cf.LSTM(3, 4, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert layer.to(dtype)(torch.randn(2, 1, 3, dtype=dtype))[0].dtype == dtype
    assert cf.GRU(3, 4, device="meta")(torch.randn(5, 2, 3, device="meta"))[0].shape == (5, 2, 4)


def test_hooks_run():
    seen = []
    layer = cf.GRU(3, 4)
    layer.register_forward_hook(lambda *args: seen.append("forward"))
    layer.register_forward_pre_hook(lambda *args: seen.append("before"))
    layer(torch.randn(5, 2, 3))
    assert seen == ["before", "forward"]


@cf.cell(gates="n", states="h", source="none: a cell of the tests")
def leaky(gate, h):
    """One step whose output is not its state."""
    h = 0.9 * h + torch.tanh(gate.n)
    return 2 * h, (h,)


@cf.cell(
    gates=("in_gate", "out_gate"),
    states=("h", "memory"),
    parameters={"rate": cf.scalar(0.5, learned=False), "scale": cf.per_unit((0.5, 1.5))},
    source="none: a cell of the tests",
)
def wordy(gate, h, memory, rate, scale):
    """One step with names of several letters, a constant and a learned parameter."""
    i = torch.sigmoid(gate.in_gate.of(memory) + gate.in_gate.x)
    memory = rate * memory + i * scale
    return torch.tanh(gate.out_gate) * memory, memory


def test_output_that_is_not_a_state():
    layer = leaky.layer(3, 4, 2, bidirectional=True, dtype=torch.float64)
    output, h_n = layer(torch.randn(5, 2, 3, dtype=torch.float64))
    assert_same(output[-1, :, :4], 2 * h_n[2])
    assert_same(output[0, :, 4:], 2 * h_n[3])
    y, state = leaky.one_step(3, 4)(torch.randn(2, 3))
    torch.testing.assert_close(y, 2 * state)


def test_named_gates_constants_and_operands():
    layer = wordy.layer(3, 4)
    assert "rate_l0" in dict(layer.named_buffers())
    assert 0.5 <= layer.scale_l0.min()
    x = torch.randn(5, 2, 3)
    output, (h_n, _) = layer(x)
    assert torch.equal(output[-1], h_n[0])
    assert pickle.loads(pickle.dumps(layer))(x)[0].equal(output)


@cf.cell(
    gates="fn",
    initial={
        "bias_ih": 0.0,
        "bias_ih.n": 3.0,
        "weight_hh.n": (5.0, 6.0),
        "weight_hh.f": torch.nn.init.zeros_,
    },
    source="none: a cell of the tests",
)
def started(gate, h):
    """One step of a cell whose gates start differently."""
    return torch.sigmoid(gate.f) * h + gate.n


def test_initial_values_go_to_the_gate_they_name():
    layer = started.layer(3, 4)
    assert layer.bias_ih_l0.tolist() == [0.0] * 4 + [3.0] * 4
    assert torch.equal(layer.weight_hh_l0[:4], torch.zeros(4, 4))
    assert layer.weight_hh_l0[4:].min() >= 5
    assert layer.weight_ih_l0.abs().max() <= 0.5


def test_step_of_a_bidirectional_layer_says_why_not():
    with pytest.raises(cf.errors.InputError, match="reverse direction starts at the last"):
        cf.LSTM(3, 4, bidirectional=True).step(torch.randn(2, 3))


def test_step_without_batch_and_batch_first():
    for options in ({}, {"batch_first": True}):
        layer = cf.LSTM(3, 4, **options)
        y, state = layer.step(torch.randn(3))
        assert y.shape == (4,)
        y, state = layer.step(torch.randn(3), state)
        assert layer.step(torch.randn(2, 3))[0].shape == (2, 4)


def test_the_choice_of_a_backend_can_be_asked_for():
    lstm, mgu = cf.LSTM(3, 4), cf.cells.mgu.layer(3, 4)
    x = torch.randn(9, 2, 3)
    assert cf.GRU(3, 4).why_not(x) == {
        "cpu": "",
        "cuda": "the input is on cpu, not on a CUDA device",
        "aten": "",
        "eager": "",
    }
    assert lstm.why_not(x)["cpu"] == ""
    assert "takes longer than 1 time steps" in cf.GRU(3, 512).why_not(x.repeat(1, 16, 1)[:1])["cpu"]
    assert cf.GRU(3, 256).why_not(x)["cpu"] == ""
    assert lstm.double().why_not(x.double())["cpu"] == ""
    assert "no operator for the cell mgu" in mgu.why_not(x)["aten"]
    assert cf.why_not(lstm, x.double()) == cf.why_not(mgu, x) == ""
    assert "takes longer than 1 time steps" in cf.why_not(cf.GRU(3, 512), x.repeat(1, 16, 1)[:1])
    assert cf.why_not(cf.GRU(3, 512, backend="cpu"), x.repeat(1, 16, 1)[:1]) == ""
    assert cf.why_not(cf.GRU(3, 4, backend="eager"), x) == "it was made with backend='eager'"
    with pytest.raises(cf.errors.ConvertError, match=r"got GRU\. `cf\.convert` makes one of"):
        cf.why_not(torch.nn.GRU(3, 4), x)
    with pytest.raises(cf.errors.BackendError, match="no operator for the cell mgu"):
        cf.cells.mgu.layer(3, 4, backend="aten")(x)
    with pytest.raises(cf.errors.OptionError, match="use 'auto' or one of cpu, cuda, aten, eager"):
        cf.LSTM(3, 4, backend="cudnn")


def test_results_are_the_same_bits_again():
    for name in ("lstm", "mgu", "layer_norm_lstm"):
        layer = small_layer(name, 5, 8, num_layers=2, dtype=torch.float32)
        x = torch.randn(9, 4, 5)
        assert torch.equal(layer(x)[0], layer(x)[0])


def test_no_warning_in_ordinary_use():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cf.LSTM(3, 4, 2, dropout=0.1)(torch.randn(5, 2, 3))[0].sum().backward()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_jit_trace_gives_the_same_graph_twice(name, training):
    layer = getattr(cf, name)(3, 4, num_layers=2).train(training)
    x = torch.randn(5, 2, 3)
    traced = torch.jit.trace(layer, x)  # checks itself, with and without gradients
    torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_backward_again_through_a_retained_graph(name):
    layer = getattr(cf, name)(10, 20, num_layers=2)
    x = torch.randn(5, 6, 10, requires_grad=True)
    output, _ = layer(x)
    wanted = [x, *layer.parameters()]
    first = torch.autograd.grad(output.sum(), wanted, retain_graph=True)
    for _ in range(3):
        again = torch.autograd.grad(output.sum(), wanted, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
