"""What stood in memory before a call, or in another sequence, reaches no result.

Torch fills new memory with NaN in its deterministic mode; what calls keep for the next one is filled here.
"""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import cellfuse as cf
from cellfuse.runtime.kernel_call import SESSIONS
from compare import OPTIONS

FAST = ["gru_reset_before", "layer_norm_lstm", "lstm", "mingru", "projected_lstm", "slstm"]
CELLS = [*FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in sorted(set(cf.cells.CELLS) - set(FAST)))]
# (input size, hidden size, T, B): padded units, whole vectors, the smallest.
SIZES = [(7, 13, 9, 5), (16, 32, 9, 5)]
MORE = [pytest.param(sizes, marks=pytest.mark.slow) for sizes in ((1, 2, 1, 1), (3, 34, 2, 13))]


def layer_of(name, inputs, hidden, **options):
    options = OPTIONS.get(name, {}) | options
    if hidden % options.get("num_heads", 1):
        options["num_heads"] = 1
    if hidden <= options.get("proj_size", 0):
        options["proj_size"] = 1
    return cf.cells.find(name).layer(inputs, hidden, backend="cpu", **options)


def tuple_of(states):
    return states if isinstance(states, tuple) else (states,)


def all_of(layer, x, lengths=None):
    """Output, states and gradients by training, then output and states without gradients."""
    x = x.detach().clone().requires_grad_()
    given = x if lengths is None else pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, states = layer(given)
    output = output if lengths is None else output.data
    loss = output.square().sum() + sum(state.sum() for state in tuple_of(states))
    wanted = [x, *layer.parameters()]
    found = [output, *tuple_of(states)]
    for each in (loss, output.sum()):
        found += torch.autograd.grad(each, wanted, allow_unused=True, retain_graph=True)
    with torch.no_grad():
        given = x.detach() if lengths is None else given
        output, states = layer(given)
        found += [output if lengths is None else output.data, *tuple_of(states)]
    return [value for value in found if value is not None]


def poison():
    """Fill it with NaN, but for the zeros that are written once."""
    for session in SESSIONS.kept():
        whole = session.memory.clone()
        session.memory.fill_(float("nan"))
        for name in {"*bias", "zeros"} & set(session.places):
            first = session.first + session.places[name]
            later = [place for place in session.places.values() if place > session.places[name]]
            end = session.first + min(later) if later else len(whole)
            session.memory[first:end] = whole[first:end]
    return len(SESSIONS.kept())


@pytest.fixture
def new_memory_is_nan():
    assert torch.utils.deterministic.fill_uninitialized_memory
    SESSIONS.clear()

    def switch(is_on):
        torch.use_deterministic_algorithms(is_on)
        assert not is_on or torch.empty(3).isnan().all()

    yield switch
    torch.use_deterministic_algorithms(False)
    SESSIONS.clear()


@pytest.mark.parametrize("sizes", [*SIZES, *MORE])
@pytest.mark.parametrize("name", CELLS)
def test_what_stood_in_memory_reaches_no_result(name, sizes, new_memory_is_nan, way):
    inputs, hidden, T, B = sizes
    ragged = torch.randint(1, T + 1, (B,))
    ragged[0] = T
    for options in ({}, {"num_layers": 2, "bidirectional": True}, {"recompute": True}):
        layer = layer_of(name, inputs, hidden, bias=hidden != 34, **options)
        x = torch.randn(T, B, inputs)
        for lengths in (None, ragged):
            want = all_of(layer, x, lengths)
            SESSIONS.clear()
            layer.__dict__.pop("_quick", None)
            new_memory_is_nan(True)
            got = all_of(layer, x, lengths)
            assert poison()
            again = all_of(layer, x, lengths)
            new_memory_is_nan(False)
            for each in (got, again):
                for value, wanted in zip(each, want, strict=True):
                    assert value.isfinite().all(), (options, lengths)
                    assert torch.equal(value, wanted), (options, lengths)


@pytest.mark.parametrize("name", CELLS)
def test_a_step_reads_nothing_that_stood_in_memory(name, new_memory_is_nan):
    for inputs, hidden, _, B in SIZES:
        layer, x = layer_of(name, inputs, hidden, num_layers=2), torch.randn(B, inputs)
        with torch.no_grad():
            want, states = layer.step(x)
            layer.__dict__.pop("_quick")
            new_memory_is_nan(True)
            for _ in range(2):
                got, now = layer.step(x)
                for value, wanted in zip((got, *tuple_of(now)), (want, *tuple_of(states)), strict=True):
                    assert torch.equal(value, wanted)
            new_memory_is_nan(False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e-42], ids=["nan", "inf", "denormal"])
@pytest.mark.parametrize("name", CELLS)
def test_an_odd_number_stays_in_its_sequence_and_comes_no_earlier(name, value):
    for inputs, hidden, T, B in ((7, 13, 8, 6), (16, 32, 8, 14)):
        for b, t, is_grad in ((2, 4, True), (0, 0, True), (B - 1, T - 1, True), (1, 3, False)):
            layer, x = layer_of(name, inputs, hidden), torch.randn(T, B, inputs)
            layer.requires_grad_(is_grad)
            odd = x.clone()
            odd[t, b] = value
            others = torch.arange(B) != b
            x.requires_grad_(is_grad)
            odd.requires_grad_(is_grad)
            (clean, clean_states), (output, states) = layer(x), layer(odd)
            assert torch.equal(output[:, others], clean[:, others])
            assert torch.equal(output[:t, b], clean[:t, b])
            for got, want in zip(tuple_of(states), tuple_of(clean_states), strict=True):
                assert torch.equal(got[:, others], want[:, others])
            if value != value:
                assert output[t:, b].isnan().any()
            if is_grad:
                want, got = (
                    torch.autograd.grad(y.square().sum(), v)[0] for y, v in ((clean, x), (output, odd))
                )
                assert torch.equal(got[:, others], want[:, others])
                assert value != 1e-42 or got.isfinite().all()


@pytest.mark.parametrize("name", CELLS)
def test_nan_behind_the_end_of_a_sequence_is_not_read(name):
    lengths = torch.tensor([5, 8, 1, 3])
    layer = layer_of(name, 7, 13, num_layers=2, bidirectional=True)
    x = torch.randn(8, 4, 7)
    padding = torch.arange(8).unsqueeze(1) >= lengths
    odd = x.clone()
    odd[padding] = float("nan")
    found = []
    for value in (x, odd):
        value.requires_grad_()
        output, states = layer(pack_padded_sequence(value, lengths, enforce_sorted=False))
        output, _ = pad_packed_sequence(output)
        loss = output.square().sum() + sum(state.sum() for state in tuple_of(states))
        found.append([output, *tuple_of(states), *torch.autograd.grad(loss, [value, *layer.parameters()])])
        assert not found[-1][0][padding].any()
    for want, got in zip(*found, strict=True):
        assert torch.equal(got, want)
