"""Every transform of torch on the cpu backend equals the same transform of the formula, or raises."""

import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import cellfuse as cf
from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.masked import masked
from cellfuse.runtime import library
from cellfuse.runtime.direction import Direction, direction_of
from cellfuse.runtime.fused import Fused


@cf.cell(gates="in", states=("h", "c"), source="none: a cell of the tests")
def two_states(gate, h, c):
    """The second state is a slow average of the first."""
    i, n = torch.sigmoid(gate.i), torch.tanh(gate.n)
    h = i * h + (1 - i) * n + 0.3 * c
    return h, (h, 0.9 * c + 0.1 * torch.tanh(h))


CELLS = {"rnn": cf.cells.find("rnn"), "gru": cf.cells.find("gru"), "lstm": cf.cells.find("lstm")}
CELLS |= {"two_states": two_states, "layer_norm_lstm": cf.cells.find("layer_norm_lstm")}
T, B, I, H = 3, 2, 2, 3


def pair(name):
    """The same layer on the cpu and on the eager backend."""
    made = [CELLS[name].layer(I, H, dtype=torch.float64, backend=b) for b in ("cpu", "eager")]
    made[1].load_state_dict(made[0].state_dict())
    return made


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(T, B, I, dtype=torch.float64, generator=generator)


def output_of(layer):
    return lambda x: layer(x)[0]


def loss_of(layer):
    """Of the recurrent weights and of the input, with every result in it."""
    fixed = dict(layer.named_parameters())

    def loss(weight, x):
        output, states = functional_call(layer, {**fixed, "weight_hh_l0": weight}, (x,))
        states = states if isinstance(states, tuple) else (states,)
        return output.pow(2).sum() + sum(state.sin().sum() for state in states)

    return loss


def weight_of(layer):
    return layer.weight_hh_l0.detach()


def squared(function):
    return lambda *args: function(*args).pow(2).sum()


def dual(layer, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(layer(forward_ad.make_dual(x, x.cos()))[0]).tangent


def third_order(layer, x):
    """By torch.autograd, without torch.func."""
    weight = weight_of(layer).requires_grad_()
    value = loss_of(layer)(weight, x)
    for _ in range(2):
        (value,) = torch.autograd.grad(value, weight, create_graph=True)
        value = value.pow(2).sum()
    return torch.autograd.grad(value, weight)[0]


def forward_over_reverse(layer, x):
    weight = weight_of(layer).requires_grad_()
    loss = loss_of(layer)(weight, x)  # made outside of the level
    with forward_ad.dual_level():
        direction = forward_ad.make_dual(torch.ones_like(loss), torch.ones_like(loss))
        (gradient,) = torch.autograd.grad(loss, weight, direction)
        return forward_ad.unpack_dual(gradient).tangent


def checkpointed(layer, x):
    x = x.clone().requires_grad_()
    found = []
    for use_reentrant in (True, False):
        loss = checkpoint(squared(output_of(layer)), x, use_reentrant=use_reentrant)
        found += torch.autograd.grad(loss, x) if not use_reentrant else []
    return found


TRANSFORMS = {
    "grad": lambda l, x: grad(loss_of(l), (0, 1))(weight_of(l), x),
    "vjp": lambda l, x: vjp(output_of(l), x)[1](x.new_ones(T, B, H)),
    "vmap": lambda l, x: vmap(output_of(l))(torch.stack([x, 2 * x, -x])),
    "vmap_along_time": lambda l, x: vmap(output_of(l), in_dims=2, out_dims=1)(torch.stack([x, 2 * x], 2)),
    "vmap_of_weights": lambda l, x: vmap(loss_of(l), (0, None))(torch.stack([weight_of(l)] * 2), x),
    "per_sample_gradients": lambda l, x: vmap(grad(loss_of(l)), (None, 1))(weight_of(l), x.unsqueeze(2)),
    "grad_of_vmap": lambda l, x: grad(
        lambda w: vmap(loss_of(l), (None, 0))(w, torch.stack([x, 2 * x])).sum()
    )(weight_of(l)),
    "jacrev": lambda l, x: jacrev(output_of(l))(x),
    "jacfwd": lambda l, x: jacfwd(output_of(l))(x),
    "jvp": lambda l, x: jvp(output_of(l), (x,), (x.cos(),)),
    "hessian": lambda l, x: hessian(loss_of(l))(weight_of(l), x),
    "jacrev_of_jacrev": lambda l, x: jacrev(jacrev(loss_of(l)))(weight_of(l), x),
    "jacrev_of_jacfwd": lambda l, x: jacrev(jacfwd(loss_of(l)))(weight_of(l), x),
    "third_order": lambda l, x: grad(squared(grad(squared(grad(loss_of(l))))))(weight_of(l), x),
    "vmap_of_second_order": lambda l, x: vmap(grad(squared(grad(loss_of(l)))), (None, 1))(
        weight_of(l), x.unsqueeze(2)
    ),
}
OUTSIDE_OF_GRAPHS = {
    "dual": dual,
    "autograd_third_order": third_order,
    "forward_over_reverse": forward_over_reverse,
    "checkpointed": checkpointed,
}


def flat(result):
    return [result] if isinstance(result, torch.Tensor) else [v for each in result for v in flat(each)]


def assert_equal(got, want):
    for a, b in zip(flat(got), flat(want), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("transform", TRANSFORMS | OUTSIDE_OF_GRAPHS)
def test_it_equals_that_of_the_formula(name, transform):
    ours, eager = pair(name)
    function = (TRANSFORMS | OUTSIDE_OF_GRAPHS)[transform]
    want = function(eager, inputs())
    assert all(value.abs().sum() > 0 for value in flat(want))
    assert_equal(function(ours, inputs()), want)


def compare_compiled(name, transform):
    ours, eager = pair(name)
    function, x = TRANSFORMS[transform], inputs()
    torch.compiler.reset()
    compiled = torch.compile(lambda x: function(ours, x), backend="aot_eager", fullgraph=True)
    assert_equal(compiled(x), function(eager, x))


@pytest.mark.parametrize(
    ("name", "transform"),
    [("gru", "grad"), ("two_states", "vmap"), ("rnn", "jvp"), ("rnn", "per_sample_gradients")],
)
def test_compiled_it_equals_that_of_the_formula(name, transform):
    compare_compiled(name, transform)


# torch.compile itself refuses forward mode under vmap under reverse mode for most cells: it meets a tensor
# that it did not make. Refusing is allowed, a wrong result is not.
MAY_BE_REFUSED = {"jacrev_of_jacfwd"}


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_compiled_every_one_equals_that_of_the_formula(name, transform):
    try:
        compare_compiled(name, transform)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        if transform not in MAY_BE_REFUSED or "FakeTensor" not in str(error):
            raise


def counted(monkeypatch):
    """How often kernels and formula run."""
    calls = dict.fromkeys(("forward", "backward", "formula"), 0)

    def count(name, owner, method):
        whole = getattr(owner, method)

        def function(*args, **kwargs):
            calls[name] += 1
            return whole(*args, **kwargs)

        monkeypatch.setattr(owner, method, function)

    count("forward", Fused, "forward_call")
    count("backward", Fused, "backward_call")
    count("formula", Direction, "formula")
    return calls


def test_gradients_of_samples_are_made_by_the_kernel(monkeypatch):
    calls, (ours, _) = counted(monkeypatch), pair("lstm")
    TRANSFORMS["per_sample_gradients"](ours, inputs())
    assert calls == {"forward": 1, "backward": B, "formula": 0}
    TRANSFORMS["jacrev"](ours, inputs())
    assert calls["formula"] == 0
    TRANSFORMS["vmap"](ours, inputs())
    assert calls["forward"] == 3


@pytest.mark.parametrize("is_reverse", [False, True])
@pytest.mark.parametrize("is_packed", [False, True])
def test_the_operators_pass_torchs_own_checks(is_reverse, is_packed):
    H = 8  # no padding, which is not written and would differ
    layer = cf.GRU(I, H, dtype=torch.float64)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    text = Direction(layer.cell, Sizes(H), True, is_reverse, False, names).text
    weights = [value.detach() for value in layer.parameters()]
    x = torch.randn((4, I) if is_packed else (T, B, I), dtype=torch.float64)
    sizes = torch.tensor([2, 1, 1]) if is_packed else None
    states = [torch.randn(B, H, dtype=torch.float64)]
    made = library.forward(x, states, weights, sizes, text, True)
    gradients = [torch.randn_like(value) for value in made[:2]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not is_packed:  # what is kept of sequences that have ended is not written either
            torch.library.opcheck(library.forward, (x, states, weights, sizes, text, True))
        # Second derivatives of packed input are not for graphs: the formula would read the lengths.
        given = (gradients, x, states, weights, sizes, made[2:], text)
        torch.library.opcheck(library.backward, given)
        learned = [value.clone().requires_grad_() for value in weights]
        torch.library.opcheck(library.forward, (x.requires_grad_(), states, learned, sizes, text, False))


def test_an_operator_refuses_tensors_of_other_sizes():
    layer = cf.GRU(I, H)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    text = Direction(layer.cell, Sizes(H), True, False, False, names).text
    weights = [value.detach() for value in layer.parameters()]
    x, h = torch.randn(T, B, I), torch.randn(B, H)
    short = [weights[0], weights[1][1:], *weights[2:]]
    for values in ((x, [h], short), (x, [h[:, 1:]], weights), (x[..., 1:], [h], weights)):
        with pytest.raises(cf.errors.ShapeError, match="cellfuse operator"):
            library.forward(*values, None, text, False)
    wide = [weights[0], weights[1][:, 1:], *weights[2:]]
    freed = weights[1].clone()
    freed.untyped_storage().resize_(0)
    for values in (
        *((x, [h], wide), (x, [h], [weights[0], weights[1][:, 0], *weights[2:]]), (x, [h], weights[:3])),
        *((x, [h[:1]], weights), (x, [h.repeat(40, 1)], weights), (x, [h, h], weights), (x[0], [h], weights)),
        *((x, [h.double()], weights), (x, [h], [weights[0], freed, *weights[2:]])),
    ):
        for keep in (False, True):
            with pytest.raises(cf.errors.ShapeError, match="cellfuse operator"):
                library.forward(*values, None, text, keep)
    made = library.forward(x, [h], weights, None, text, True)
    gradients, kept = list(made[:2]), list(made[2:])
    for wrong in (
        *(([gradients[0][:1], gradients[1]], kept), (gradients[:1], kept), (gradients, kept[:-1])),
        *(([g.double() for g in gradients], kept), (gradients, [each[:1] for each in kept])),
    ):
        with pytest.raises(cf.errors.ShapeError, match="cellfuse operator"):
            library.backward(wrong[0], x, [h], weights, None, wrong[1], text)
    library.backward(gradients, x, [h], weights, None, kept, text)
    for sizes in ([2, 1], [1, 2, 1], [4], [2, 2, 0], [1, 1, 1, 1]):
        with pytest.raises(cf.errors.ShapeError, match="batch_sizes"):
            library.forward(torch.randn(4, I), [h], weights, torch.tensor(sizes), text, False)
    with pytest.raises(cf.errors.CellError, match="not the cell that the program was made with"):
        library.forward(x, [h], weights, None, text.replace(layer.cell._meaning, "0" * 16), False)
    with pytest.raises(cf.errors.CellError, match="Import the module"):
        library.forward(x, [h], weights, None, text.replace("cellfuse.cells.gru", "nowhere"), False)
    with pytest.raises(cf.errors.ShapeError, match=r"the first state is \[\], expected \[B, H\]"):
        library.forward(x[0], [torch.tensor(0.0)], weights, torch.tensor([B]), text, False)
    with pytest.raises(cf.errors.ShapeError, match="named weight_ih, weight_hh, bias_ih, nothing, expected"):
        library.forward(x, [h], weights, None, text.replace("bias_hh", "nothing"), False)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("", "garbage", "the direction is 'garbage.*expected 'CELL cpu|cuda H=1"),
        ("H=", "H=x", "the direction is '.*H=x.*expected 'CELL"),
        (" cpu ", " tpu ", "the direction is '.* tpu .*expected 'CELL"),
        ("N=1", "N=0", "the direction is '.*N=0.*expected 'CELL"),
        ("cells.gru", "cells.garbage", "cellfuse.cells.garbage.gru is not here"),
        ("cellfuse.cells.gru:gru:", "garbage", "a cell that no module holds is not here"),
        ("cellfuse.cells.gru:gru:", ":#garbage:", "a cell that no module holds is not here"),
        (" cpu", "+h=x+1 cpu", r"the masks of the cell are 'h=x\+1', expected"),
        (" cpu", "+h cpu", "the masks of the cell are 'h', expected"),
    ],
)
def test_an_operator_says_which_text_it_takes(old, new, message):
    layer = cf.GRU(I, H)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    text = Direction(layer.cell, Sizes(H), True, False, False, names).text
    weights = [value.detach() for value in layer.parameters()]
    given = torch.randn(T, B, I), [torch.randn(B, H)], weights, None
    with pytest.raises(cf.errors.CellError, match=message):
        library.forward(*given, text.replace(old, new, 1) if old else new, False)


@pytest.mark.parametrize("module", ["plain", "with a blank", "with+plus", "with:colon", "two\nlines"])
@pytest.mark.parametrize("share", [None, 0.1, 1e-05, 5e-324])
def test_every_text_of_a_direction_is_read_again(monkeypatch, module, share):
    def odd(gate, h̃):  # a name whose characters are not all letters
        return torch.tanh(gate.n)

    odd.__module__, odd.__qualname__ = module, "odd"
    direction_of.cache_clear()  # it may hold such a cell of another run of this
    found = SimpleNamespace(odd=cf.cell(gates="n", states=("h̃",), source="mine")(odd))
    monkeypatch.setitem(sys.modules, module, found)
    for cell in (found.odd, masked(found.odd, {"h̃": share}, True)):
        direction = Direction(cell, Sizes(4), True, False, False, ("weight_ih", "weight_hh"))
        assert direction_of(direction.text) == direction


def test_an_exported_program_takes_every_length_and_batch(tmp_path):
    layer = cf.LSTM(I, H, 2, bidirectional=True, backend="cpu")
    steps, batch = torch.export.Dim("T", min=1, max=512), torch.export.Dim("B", min=1, max=64)
    program = torch.export.export(layer, (torch.randn(T, B, I),), dynamic_shapes=({0: steps, 1: batch},))
    nodes = [node for node in program.graph.nodes if node.target is library.forward]
    assert len(nodes) == 4
    torch.export.save(program, tmp_path / "layer.pt2")
    loaded = torch.export.load(tmp_path / "layer.pt2").module()
    for shape in ((1, 1, I), (9, 3, I), (40, 1, I)):
        x = torch.randn(shape)
        torch.testing.assert_close(loaded(x), layer(x))


@pytest.mark.parametrize("has_states", [False, True])
def test_packed_input_is_one_node_for_all_lengths(has_states):
    ours, eager = pair("two_states")
    graphs = []
    torch.compiler.reset()

    def backend(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes])
        return graph

    compiled = torch.compile(ours, backend=backend, fullgraph=True, dynamic=True)
    for lengths in ([5, 3, 2], [2, 7, 1], [4, 4, 6]):
        x = torch.randn(7, 3, I, dtype=torch.float64)
        packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=has_states and lengths[0] == 5)
        states = tuple(torch.randn(1, 3, H, dtype=torch.float64) for _ in "hc") if has_states else None
        got, want = compiled(packed, states), eager(packed, states)
        assert_equal((got[0].data, got[1]), (want[0].data, want[1]))
        wanted = torch.autograd.grad(want[0].data.sum(), list(eager.parameters()))
        assert_equal(torch.autograd.grad(got[0].data.sum(), list(ours.parameters())), wanted)
    assert all(targets.count(library.forward) == 1 for targets in graphs)


def test_lengths_that_lie_are_refused():
    layer = cf.GRU(I, H, backend="cpu")
    for sizes in ([1, 3], [2, 1, 1, 0], [3, 0, 1]):
        packed = torch.nn.utils.rnn.PackedSequence(torch.randn(4, I), torch.tensor(sizes))
        with pytest.raises(cf.errors.ShapeError, match="batch_sizes"):
            layer(packed)
