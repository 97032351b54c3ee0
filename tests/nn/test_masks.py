"""zoneout= and recurrent_dropout=: every cell against its hand-written reference with the same masks."""

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import cellfuse as cf
from cellfuse.cells import CELLS
from cellfuse.errors import BackendError, OptionError, OptionTypeError
from compare import assert_same
from masked import LENGTHS, B, I, T, assert_reference, drawn, has_products, inputs, make, run

BACKENDS = ["cpu", "eager"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CELLS)
def test_every_cell_is_its_reference(name, backend):
    assert_reference(make(name, backend=backend))
    assert_reference(make(name, backend=backend).eval())
    if has_products(name):
        assert_reference(make(name, backend=backend, zoneout=0.0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("H", [6, 13, 16])
@pytest.mark.parametrize("name", ["gru", "projected_lstm", "slstm"])
def test_packed_stacks_in_both_directions(name, H, backend):
    layer = make(name, H, backend, num_layers=2, bidirectional=True)
    assert_reference(layer, LENGTHS)
    assert_reference(layer.eval(), LENGTHS)


@pytest.mark.parametrize("name", ["gru", "lstm"])
@pytest.mark.parametrize(
    "options", [{"bias": False}, {"recompute": True}, {"zoneout": {"h": 0.5}, "dropout": 0.0}]
)
def test_options(name, options):
    assert_reference(make(name, **options))
    assert_reference(make(name, **options), LENGTHS)


def test_one_step_one_sequence_and_none():
    assert_reference(make("lstm", 13), batch=1, steps=1)
    for backend in BACKENDS:
        layer = make("lstm", backend=backend)
        for steps, batch in ((0, 2), (3, 0)):
            output, (h, _) = layer(torch.zeros(steps, batch, I, dtype=torch.float64))
            assert (output.shape, h.shape) == ((steps, batch, 5), (1, batch, 5))


def test_the_forms_of_input_draw_the_same_masks():
    layer, first = make("lstm"), make("lstm", batch_first=True)
    x, *hx = inputs(layer, 1)
    output, *want = run(layer, x, hx)
    made, *finals = run(first, x.transpose(0, 1), hx)
    alone, *ends = run(layer, x[:, 0], [state[:, 0] for state in hx])
    assert_same(made.transpose(0, 1), output)
    assert_same(alone, output[:, 0])
    for state, one, other in zip(want, finals, ends, strict=True):
        assert_same(one, state)
        assert_same(other, state[:, 0])


def test_a_seed_makes_the_masks_again_and_every_call_draws():
    layer = make("gru")
    x, *hx = inputs(layer)
    assert torch.equal(run(layer, x, hx)[0], run(layer, x, hx)[0])
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    state = torch.get_rng_state()
    assert torch.equal(layer(x)[0], layer(x)[0])
    layer.train()
    layer.plan(x), layer.why_not(x)
    assert torch.equal(state, torch.get_rng_state())


def test_padding_of_packed_input_does_not_matter():
    layer = make("lstm", bidirectional=True)
    x, *hx = inputs(layer)
    other = x.detach().clone()
    for b, length in enumerate(LENGTHS):
        other[length:, b] = 1e9
    for a, b in zip(run(layer, x, hx, LENGTHS), run(layer, other, hx, LENGTHS), strict=True):
        assert torch.equal(a, b)
    assert_same(run(layer, other, hx, LENGTHS)[0][LENGTHS[1] :, 1], np.zeros((T - LENGTHS[1], 10)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_resets_draw_for_the_pieces(backend):
    """A piece is a sequence, with a mask of recurrent dropout of its own."""
    layer = make("lstm", backend=backend)
    x, *hx = inputs(layer, 2)
    reset = torch.zeros(T, 2, dtype=torch.bool)
    reset[3, 0] = True
    torch.manual_seed(7)
    output, (h, c) = layer(x, tuple(hx), reset=reset)
    pieces = [x[:, 1:], x[:3, :1], x[3:, :1]]  # the longest first
    packed = pack_padded_sequence(torch.nn.utils.rnn.pad_sequence([p[:, 0] for p in pieces]), [4, 3, 1])
    states = tuple(torch.stack((s[:, 1], s[:, 0], torch.zeros_like(s[:, 0])), 1) for s in hx)
    torch.manual_seed(7)
    made, (h_n, c_n) = layer(packed, states)
    made = pad_packed_sequence(made)[0]
    assert_same(output[:, 1], made[:, 0])
    assert_same(output[:, 0], torch.cat((made[:3, 1], made[:1, 2])))
    assert_same(h, h_n[:, [2, 0]])
    assert_same(c, c_n[:, [2, 0]])


def test_steps_are_sequences_of_one_step():
    """In evaluation the expectation, also by the stepper; in training masks of their own."""
    layer = make("lstm", num_layers=2)
    x, *_ = inputs(layer)
    with torch.no_grad():
        torch.manual_seed(7)
        stepped = layer.step(x[0])[0]
        torch.manual_seed(7)
        assert_same(stepped, layer(x[:1])[0][0])
        assert not torch.equal(layer.step(x[0])[0], stepped)
        stepper = layer.stepper(B)
        layer.eval()
        want, state = layer(x)[0], None
        for t in range(T):
            y, state = layer.step(x[t], state)
            assert_same(y, want[t])
            assert_same(stepper(x[t])[0], want[t])


def test_masks_have_their_shares():
    layer = make("lstm", 200, zoneout={"h": 0.2, "c": 0.6}, dropout=0.25)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.bias_ih_l0[200:400] = 50.0  # f = 1, i g = 0: c stays as it is and h is tanh(c) / 2
        torch.manual_seed(0)
        state = torch.zeros(1, 50, 200, dtype=torch.float64), torch.ones(1, 50, 200, dtype=torch.float64)
        kept = layer(torch.zeros(1, 50, I, dtype=torch.float64), state)[0] == 0
    assert 0.18 < kept.double().mean() < 0.22
    [masks] = drawn(layer, batch=50)
    assert 0.73 < (masks["R"] > 0).double().mean() < 0.77


def test_the_mean_of_many_draws_is_the_input_of_the_next_step():
    """E[mask / (1 - p)] is 1: where tanh is linear the mean is that without dropout."""
    layer = make("rnn", 40, zoneout=0.0, dropout=0.5)
    h = torch.rand(1, 1, 40, dtype=torch.float64).expand(-1, 20000, -1).contiguous() * 1e-3
    x = torch.zeros(1, 20000, I, dtype=torch.float64)
    with torch.no_grad():
        layer.bias_ih_l0.zero_(), layer.bias_hh_l0.zero_()
        noisy = layer(x, h)[0].mean((0, 1))
        clean = layer.eval()(x, h)[0].mean((0, 1))
    assert (noisy - clean).abs().max() < 0.05 * clean.abs().max()


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"zoneout": {"x": 0.1}}, "zoneout={'x': 0.1}: lstm has no state 'x'; its states are h, c"),
        (
            {"zoneout": 1.0},
            r"zoneout should be a number in range \[0, 1\), without 1, or a mapping .*, got 1.0",
        ),
        ({"zoneout": -0.1}, "got -0.1"),
        ({"zoneout": float("nan")}, "got nan"),
        ({"zoneout": {"c": 2}}, r"zoneout of state c should be a number in range \[0, 1\), without 1, got 2"),
        (
            {"recurrent_dropout": 1},
            r"recurrent_dropout should be a number in range \[0, 1\), without 1, got 1",
        ),
    ],
)
def test_wrong_numbers(option, text):
    with pytest.raises(OptionError, match=text):
        cf.LSTM(3, 4, **option)
    layer = cf.LSTM(3, 4)
    (name, value) = next(iter(option.items()))
    with pytest.raises(OptionError, match=text):
        setattr(layer, name, value)


@pytest.mark.parametrize("value", [None, "0.1", True, [0.1], {"h": None}, {"h": True}])
def test_wrong_types(value):
    with pytest.raises(OptionTypeError, match="zoneout"):
        cf.GRU(3, 4, zoneout=value)
    with pytest.raises(OptionTypeError, match="recurrent_dropout should be"):
        cf.GRU(3, 4, recurrent_dropout=value)


def test_what_a_cell_cannot_have():
    with pytest.raises(OptionError, match=r"the cell mingru has no recurrent product .* Write zoneout="):
        cf.cells.mingru.layer(3, 4, recurrent_dropout=0.1)
    with pytest.raises(
        OptionError, match=r"state m of slstm begins with -inf.*zoneout=\{'h': 0.1, 'c': 0.1, 'n': 0.1\}"
    ):
        cf.cells.slstm.layer(3, 4, zoneout=0.1)


@pytest.mark.parametrize("H", [5, 16])
def test_setting_an_option_takes_effect(H):
    """Also where memory of an earlier call is used again, as it is from a third call on."""
    layer = make("lstm", H, zoneout=0.0, dropout=0.0)
    x, *hx = (value.detach() for value in inputs(layer))
    for training in (True, False):
        layer.train(training)
        for zoneout, dropout in ((0.0, 0.0), (0.3, 0.0), ({"c": 0.2}, 0.1), (0.0, 0.0)):
            layer.zoneout, layer.recurrent_dropout = zoneout, dropout
            eager = make("lstm", H, "eager", zoneout=zoneout, dropout=dropout).train(training)
            for is_grad in (True, False):
                with torch.set_grad_enabled(is_grad):
                    for _ in range(3):
                        for a, b in zip(run(layer, x, hx), run(eager, x, hx), strict=True):
                            assert_same(a, b)
                    torch.manual_seed(7)
                    step = layer.step(x[0])[0]
                    torch.manual_seed(7)
                    assert_same(step, eager.step(x[0])[0])
    layer.zoneout = {"h": 0.1}
    with pytest.raises(TypeError, match="item assignment"):
        layer.zoneout["h"] = 0.5


def test_layers_print_copy_and_pickle():
    import copy
    import pickle

    layer = cf.LSTM(3, 4, zoneout={"h": 0.05, "c": 0.5}, recurrent_dropout=0.25)
    assert repr(layer) == "LSTM(3, 4, zoneout={'h': 0.05, 'c': 0.5}, recurrent_dropout=0.25)"
    assert repr(cf.GRU(3, 4, zoneout=0.1)) == "GRU(3, 4, zoneout=0.1)"
    x = torch.randn(2, 2, 3)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(other) == repr(layer)
        torch.manual_seed(0)
        want = layer(x)[0]
        torch.manual_seed(0)
        assert torch.equal(other(x)[0], want)


def test_torchs_operator_is_passed_over_with_the_reason():
    layer = cf.LSTM(3, 4, zoneout=0.1)
    x = torch.randn(2, 2, 3)
    assert layer.why_not(x)["aten"] == "torch's operators know neither zoneout nor recurrent dropout"
    with pytest.raises(BackendError, match="know neither zoneout"):
        cf.LSTM(3, 4, recurrent_dropout=0.1, backend="aten")(x)


@pytest.mark.parametrize("lengths", [[9], [9, 7, 2], [9] * 37], ids=len)
@pytest.mark.parametrize("name", ["gru", "lstm", "slstm"])
def test_threads_read_their_own_part_of_the_masks(name, lengths):
    """They share units of few sequences, or sequences; packed input too."""
    layer, eager = (make(name, 72, backend) for backend in ("cpu", "eager"))
    x, *hx = (value.detach() for value in inputs(layer, len(lengths), 9))
    before = torch.get_num_threads()
    want = run(eager, x, hx, lengths)
    weights = list(eager.parameters())
    slopes = torch.autograd.grad(sum(value.sin().sum() for value in want), weights)
    try:
        torch.set_num_threads(3)
        got = run(layer, x, hx, lengths)
        found = torch.autograd.grad(sum(value.sin().sum() for value in got), list(layer.parameters()))
    finally:
        torch.set_num_threads(before)
    for a, b in zip((*got, *found), (*want, *slopes), strict=True):
        assert_same(a, b, tolerance=1e-10)
