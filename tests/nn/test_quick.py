"""The quick ways of a layer against the equations in float64: every result and gradient, at every call."""

import itertools
import random

import pytest
import torch

import cellfuse as cf
from compare import OPTIONS, assert_same

CELLS = ["gru", "layer_norm_lstm", "lstm", "mingru", "peephole_lstm", "projected_lstm", "rnn", "slstm"]


def pair(name, inputs, hidden, **options):
    """The same layer on the cpu and on the eager backend."""
    options = {"dtype": torch.float64} | OPTIONS.get(name, {}) | options
    if hidden % options.get("num_heads", 1):
        options["num_heads"] = 1
    make = cf.cells.find(name).layer
    ours, eager = (
        make(inputs, hidden, backend="cpu", **options),
        make(inputs, hidden, backend="eager", **options),
    )
    eager.load_state_dict(ours.state_dict())
    return ours, eager


def tuple_of(states):
    return states if isinstance(states, tuple) else (states,)


def results(layer, x, hx, parts, needs):
    """Output and final states; and gradients of what is needed, of a loss of some of the results."""
    leaves = [x.clone().requires_grad_("x" in needs)]
    if hx is not None:
        leaves += [state.clone().requires_grad_("states" in needs) for state in tuple_of(hx)]
    given = None if hx is None else leaves[1] if len(leaves) == 2 else tuple(leaves[1:])
    layer.requires_grad_("weights" in needs)
    output, states = layer(leaves[0], given)
    made = [output, *tuple_of(states)]
    generator = torch.Generator().manual_seed(0)
    weighted = [(v * torch.randn(v.shape, dtype=v.dtype, generator=generator)).sum() for v in made]
    wanted = [value for value in (*leaves, *layer.parameters()) if value.requires_grad]
    if not wanted or not parts:
        return made
    loss = sum(weighted[k % len(weighted)] for k in parts)
    return [*made, *torch.autograd.grad(loss, wanted, allow_unused=True)]


def compare(ours, eager, *given):
    """Three calls: by the general way, by new memory, by memory that was used before."""
    want = results(eager, *given)
    for _ in range(3):
        for got, value in zip(results(ours, *given), want, strict=True):
            if got is None or value is None:
                assert value is None or not value.any()
                assert got is None or not got.any()
                continue
            scale = max(1.0, value.abs().max().item())  # layer norm's gradients are large
            assert_same(got / scale, value / scale, tolerance=1e-10)


@pytest.mark.parametrize("is_reverse_too", [False, True])
@pytest.mark.parametrize("hidden", [13, 16])
@pytest.mark.parametrize("name", CELLS)
def test_results_and_gradients(name, hidden, is_reverse_too):
    depth = 2 if is_reverse_too else 3
    ours, eager = pair(name, 5, hidden, num_layers=depth, bidirectional=is_reverse_too)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    states = [torch.randn_like(state) for state in ours.initial_states(3, x)]
    hx = states[0] if len(states) == 1 else tuple(states)
    for given, needs in itertools.product((None, hx), (("x", "states", "weights"), ("weights",), ("x",), ())):
        compare(ours, eager, x, given, (0, 1, 2), needs)
    for parts in ((0,), (1,), (2,)):
        compare(ours, eager, x, hx, parts, ("x", "states", "weights"))
    with torch.no_grad():
        compare(ours, eager, x, hx, (), ())
        compare(ours, eager, x, None, (), ())
    assert any(ours._quick.sizes.values())


def test_random_sizes_and_options():
    draw = random.Random(0)
    for number in range(80):
        name, hidden = draw.choice(CELLS), draw.randint(2, 40)
        options = {
            "num_layers": draw.randint(1, 3),
            "bidirectional": draw.random() < 0.5,
            "batch_first": draw.random() < 0.5,
            "bias": draw.random() < 0.7,
        }
        T, B, inputs = draw.randint(1, 7), draw.randint(1, 40), draw.choice([1, 3, 8, 16, hidden])
        ours, eager = pair(name, inputs, hidden, **options)
        shape = (B, T, inputs) if options["batch_first"] else (T, B, inputs)
        x = torch.randn(shape, dtype=torch.float64)
        hx = tuple(torch.randn_like(state) for state in ours.initial_states(B, x))
        hx = draw.choice([None, hx[0] if len(hx) == 1 else hx])
        needs = draw.choice([("x", "states", "weights"), ("weights",), ()])
        compare(ours, eager, x, hx, (0, 1), needs)
        assert ours._quick.sizes, (number, name)


def test_float32_is_as_exact_as_torch():
    theirs = torch.nn.LSTM(7, 50, 2, bidirectional=True)
    ours = cf.LSTM(7, 50, 2, bidirectional=True, backend="cpu")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(40, 6, 7)
    for _ in range(3):
        mine = results(ours, x, None, (0, 1, 2), ("x", "weights"))
    other = results(theirs, x, None, (0, 1, 2), ("x", "weights"))
    exact = results(theirs.double(), x.double(), None, (0, 1, 2), ("x", "weights"))
    for got, baseline, want in zip(mine[:3], other[:3], exact[:3], strict=True):
        assert (got - want).abs().max() <= 2 * (baseline - want).abs().max() + 1e-7


def test_dropout_between_layers_draws_what_the_general_way_draws():
    ours, eager = pair("gru", 3, 10, num_layers=3, dropout=0.5, bidirectional=True)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    for _ in range(3):
        made = []
        for layer in (ours, eager):
            torch.manual_seed(1)
            made.append(results(layer, x, None, (0, 1), ("x", "weights")))
        for got, want in zip(*made, strict=True):
            assert_same(got, want, tolerance=1e-10)
    assert not torch.equal(ours(x)[0], ours(x)[0])
    ours.eval()
    assert torch.equal(ours(x)[0], ours(x)[0])


def test_gradients_of_gradients_and_batched_gradients():
    ours, eager = pair("lstm", 3, 5, num_layers=2, bidirectional=True)
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    for _ in range(3):
        made = []
        for layer in (ours, eager):
            leaf = x.clone().requires_grad_()
            output, (h, _) = layer(leaf)
            loss = output.square().sum() + h.sum()
            wanted = [leaf, *layer.parameters()]
            first = torch.autograd.grad(loss, wanted, create_graph=True)
            second = torch.autograd.grad(sum(value.square().sum() for value in first), wanted)
            rows = torch.autograd.grad(
                layer(leaf)[0], leaf, torch.ones(2, *output.shape).double(), is_grads_batched=True
            )
            made.append([*first, *second, *rows])
        for got, want in zip(*made, strict=True):
            assert_same(got, want, tolerance=1e-9)


def test_results_have_memory_of_their_own():
    layer, x = cf.LSTM(3, 5, num_layers=2, bidirectional=True, backend="cpu"), torch.randn(4, 2, 3)
    for is_grad in (True, False):
        with torch.set_grad_enabled(is_grad):
            for _ in range(2):
                output, (h, c) = layer(x)
            kept = [value.detach().clone() for value in (output, h, c)]
            layer(torch.randn(4, 2, 3))
            for value, before in zip((output, h, c), kept, strict=True):
                assert torch.equal(value, before)
