"""Steps without gradient: the kernel on a user's tensors, weights that change, the stepper."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import cellfuse as cf
from cellfuse.cells import CELLS
from cellfuse.nn import streaming
from compare import OPTIONS, assert_same

SIZES = [(20, 48, 1, 1, True), (3, 20, 3, 2, True), (37, 18, 2, 3, False), (1, 8, 5, 1, True)]


def tuple_of(states):
    return states if isinstance(states, tuple) else (states,)


def pair(name, inputs, hidden, **options):
    """The same layer on "auto" and on the eager backend, with biases and weights away from zero."""
    make = cf.cells.find(name).layer
    options = OPTIONS.get(name, {}) | options
    ours, eager = make(inputs, hidden, **options), make(inputs, hidden, backend="eager", **options)
    with torch.no_grad():
        for value in ours.parameters():
            value += torch.randn_like(value) / 8
    eager.load_state_dict(ours.state_dict())
    return ours, eager


@pytest.mark.parametrize("name", list(CELLS))
def test_steps_equal_the_sequence_for_every_cell(name):
    torch.manual_seed(0)
    for inputs, hidden, batch, layers, bias in SIZES:
        ours, eager = pair(name, inputs, hidden, num_layers=layers, bias=bias, dtype=torch.float64)
        x = torch.randn(4, batch, inputs, dtype=torch.float64)
        stepper, state = ours.stepper(batch), None
        with torch.no_grad():
            output, finals = eager(x)
            for t in range(4):
                y, state = streaming.step(ours, x[t], state)
                again, remembered = stepper(x[t])
                assert_same(y, output[t], tolerance=1e-11)
                assert torch.equal(again, y)
        for got, other, want in zip(*map(tuple_of, (state, remembered, finals)), strict=True):
            assert_same(got, want, tolerance=1e-11)
            assert torch.equal(got, other)


def quick(layer, x, state=None):
    """Whether a step is quick; its result is in any case the eager one."""
    with torch.no_grad():
        made = streaming.step(layer, x, state)
        y, _ = layer.step(x, state)
        backend, layer.backend = layer.backend, "eager"
        want, _ = layer.step(x, state)
        layer.backend = backend
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-6)
    return made is not None


def test_a_step_reads_the_weights_of_now():
    layer, x = cf.LSTM(6, 6), torch.randn(2, 6)
    assert quick(layer, x)
    before = layer.step(x)[0]
    optimiser = torch.optim.SGD(layer.parameters(), 0.5)
    layer(x[None])[0].sum().backward()
    optimiser.step()
    assert quick(layer, x)
    assert not torch.equal(layer.step(x)[0], before)
    layer.load_state_dict(cf.LSTM(6, 6).state_dict())
    assert quick(layer, x)
    layer.weight_hh_l0.data.mul_(2)  # unseen by version counters
    assert quick(layer, x)
    layer.weight_ih_l0.detach().numpy()[:] += 0.25
    assert quick(layer, x)
    layer.weight_ih_l0.data = torch.randn(24, 6)
    assert quick(layer, x)
    layer.weight_ih_l0 = nn.Parameter(torch.randn(24, 6))
    assert quick(layer, x)
    layer.weight_ih_l0.data = torch.randn(6, 24).t()  # not plain memory
    assert not quick(layer, x)
    assert quick(cf.LSTM(6, 6).double(), x.double())
    changed = layer.double()
    changed.weight_ih_l0.data = changed.weight_ih_l0.data.contiguous()
    assert quick(changed, x.double())


def test_steps_under_functional_call_and_parametrizations():
    layer, x = cf.GRU(3, 4), torch.randn(2, 3)
    assert quick(layer, x)

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer.step(x)[0]

    steps = Steps()
    for _ in range(3):
        other = cf.GRU(3, 4)
        weights = {f"layer.{name}": value.detach() for name, value in other.named_parameters()}
        with torch.no_grad():
            assert torch.equal(torch.func.functional_call(steps, weights, (x,)), other.step(x)[0])
    parametrizations.weight_norm(layer, "weight_hh_l0")
    assert not quick(layer, x)


def test_copies_of_a_layer_share_no_memory():
    layer, x = cf.LSTM(3, 4), torch.randn(2, 3)
    assert quick(layer, x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert "_quick" not in other.__dict__
        with torch.no_grad():
            other.weight_hh_l0.zero_()
            layer.weight_hh_l0.fill_(1)
        assert quick(other, x)
    model = cf.convert(nn.Sequential(nn.GRU(3, 4)))
    assert quick(model[0], x)


def test_what_the_quick_step_leaves_to_the_general_one():
    layer, x = cf.LSTM(3, 4), torch.randn(2, 3)
    assert streaming.step(layer, x, None) is None  # weights that need gradients
    assert layer.step(x)[0].requires_grad
    frozen = cf.LSTM(3, 4).requires_grad_(False)
    assert streaming.step(frozen, x, None) is not None
    h, c = torch.zeros(1, 2, 4), torch.zeros(1, 2, 4, requires_grad=True)
    assert frozen.step(x, (h, c))[0].requires_grad
    assert frozen.step(x.clone().requires_grad_())[0].requires_grad
    seen = []
    handle = frozen.register_forward_hook(lambda *_: seen.append(1))
    frozen.step(x)
    handle.remove()
    assert seen == [1]
    with torch.autocast("cpu", torch.bfloat16):
        assert frozen.step(x)[0].dtype == torch.bfloat16
    with torch.no_grad():
        dropped = cf.LSTM(3, 4, num_layers=2, dropout=0.5)
        assert streaming.step(dropped, x, None) is None
        assert streaming.step(dropped.eval(), x, None) is not None
        assert torch.func.vmap(lambda v: frozen.step(v)[0])(x).shape == (2, 4)
        assert frozen.step(x[:0])[0].shape == (0, 4)
        with pytest.raises(cf.errors.ShapeError, match="Expected 3, got 5"):
            frozen.step(torch.randn(2, 5))
        with pytest.raises(cf.errors.ShapeError, match="Expected hidden"):
            frozen.step(x, (h[:, :1], h[:, :1]))
        with pytest.raises(cf.errors.InputError, match="does not match weight dtype"):
            frozen.step(x.double())


def test_a_step_takes_views_and_forms_torch_does():
    layer = cf.LSTM(3, 4, num_layers=2).requires_grad_(False)
    wide = torch.randn(2, 6)
    state = layer.step(torch.randn(2, 3))[1]
    strided = [value.transpose(0, 1).contiguous().transpose(0, 1) for value in state]
    assert_same(
        layer.step(wide[:, ::2], strided)[0], layer.step(wide[:, ::2].contiguous(), state)[0], tolerance=1e-6
    )
    y, (h, c) = layer.step(torch.randn(3))
    assert (y.shape, h.shape, c.shape) == ((4,), (2, 4), (2, 4))
    assert layer.step(torch.randn(3), (h, c))[0].shape == (4,)
    for batch in range(1, 9):
        assert quick(layer, torch.randn(batch, 3))
    with torch.inference_mode():
        assert layer.step(torch.randn(2, 3))[0].shape == (2, 4)
    with torch.device("meta"):
        assert layer.step(wide[:, :3].clone())[0].device.type == "cpu"


def test_threads_may_step_one_layer():
    layer = cf.GRU(16, 48).requires_grad_(False)
    xs = torch.randn(4, 60, 2, 16)
    want = [layer(x)[0] for x in xs]
    found = [None] * 4

    def run(k):
        state, made = None, []
        for x in xs[k]:
            y, state = layer.step(x, state)
            made.append(y)
        found[k] = torch.stack(made)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, expected in zip(found, want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_a_stepper_keeps_its_weights_until_refreshed():
    layer, x = cf.LSTM(3, 4), torch.randn(2, 3)
    stepper = layer.stepper(2)
    old = stepper(x)[0]
    with torch.no_grad():
        layer.weight_ih_l0.mul_(2)
    stepper.reset()
    assert torch.equal(stepper(x)[0], old)
    stepper.refresh()
    stepper.reset()
    new, _ = stepper(x)
    assert torch.equal(new, layer.requires_grad_(False).step(x)[0])
    assert not torch.equal(new, old)
    layer.double()
    with pytest.raises(cf.errors.BackendError, match="Make a new one"):
        stepper.refresh()


def test_a_stepper_gives_copies_and_resets_rows():
    layer, x = cf.cells.slstm.layer(3, 4, num_layers=2), torch.randn(3, 3)
    stepper = layer.stepper(3)
    start = stepper.state
    first, state = stepper(x)
    want, held = stepper(x)
    stepper.state = state
    for value in (first, *state):
        value.fill_(torch.nan)
    assert torch.equal(stepper(x)[0], want)
    stepper.reset([0, 2])
    for now, begin, kept in zip(stepper.state, start, held, strict=True):
        assert torch.equal(now[:, [0, 2]], begin[:, [0, 2]])
        assert torch.equal(now[:, 1], kept[:, 1])
    stepper.reset(torch.tensor([False, True, False]))
    assert all(torch.equal(*both) for both in zip(stepper.state, start, strict=True))
    with pytest.raises(cf.errors.ShapeError, match="Expected hidden"):
        stepper.state = tuple(value[:, :1] for value in start)
    assert repr(stepper) == "slstm.layer.stepper(batch_size=3)"


def test_a_stepper_says_what_it_cannot():
    with pytest.raises(cf.errors.InputError, match="reverse direction starts at the last"):
        cf.LSTM(3, 4, bidirectional=True).stepper()
    for wrong in (0, -1):
        with pytest.raises(cf.errors.OptionError, match="batch_size must be greater"):
            cf.LSTM(3, 4).stepper(wrong)
    with pytest.raises(cf.errors.OptionTypeError, match="batch_size should be of type int"):
        cf.LSTM(3, 4).stepper(2.0)
    with pytest.raises(cf.errors.BackendError, match=r"layer.step\(x_t, state\)"):
        cf.LSTM(3, 4, dtype=torch.bfloat16).stepper()
    stepper = cf.LSTM(3, 4).stepper(2)
    with pytest.raises(cf.errors.ShapeError, match=r"expected x_t \[2, 3\], got \[3\]"):
        stepper(torch.randn(3))
    with pytest.raises(cf.errors.InputError, match=r"x_t is torch\.float64 on cpu"):
        stepper(torch.randn(2, 3).double())
    with pytest.raises(cf.errors.OptionTypeError, match="must be a Tensor"):
        stepper([0.0])
    assert not stepper(torch.randn(3, 2, requires_grad=True).t())[0].requires_grad
