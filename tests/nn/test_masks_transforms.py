"""Layers with masks under transforms, torch.compile, export and low precision: as the formula, or refused."""

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint

import cellfuse as cf
from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.errors import BackendError, ShapeError
from cellfuse.graph.masks import DROPOUT
from cellfuse.runtime import library
from cellfuse.runtime.direction import Direction
from compare import assert_as_accurate, assert_same
from masked import inputs, make, run


def x_of():
    torch.manual_seed(1)
    return torch.randn(4, 2, 3, dtype=torch.float64)


def loss_of(layer):
    return lambda weights, x: functional_call(layer, weights, (x,))[0].pow(2).sum()


def weights_of(layer):
    return {name: value.detach() for name, value in layer.named_parameters()}


def twice(layer, x):
    x = x.clone().requires_grad_()
    output, (_, c) = layer(x)
    (first,) = torch.autograd.grad(output.pow(2).sum() + c.sin().sum(), x, create_graph=True)
    return torch.autograd.grad(first.pow(2).sum(), [x, *layer.parameters()])


def again(layer, x):
    x = x.clone().requires_grad_()
    checkpoint(lambda x: layer(x)[0], x, use_reentrant=False).pow(2).sum().backward()
    return x.grad


def samples(x):
    return torch.stack([x, x, 2 * x])


def summed(layer):
    return lambda x: layer(x)[0].pow(2).sum()


TRANSFORMS = {
    "grad": lambda layer, x: grad(loss_of(layer))(weights_of(layer), x),
    "jvp": lambda layer, x: jvp(lambda x: layer(x)[0], (x,), (x.cos(),)),
    "jacrev": lambda layer, x: jacrev(lambda x: layer(x)[0])(x),
    "jacfwd": lambda layer, x: jacfwd(lambda x: layer(x)[0], randomness="same")(x),
    "hessian": lambda layer, x: jacfwd(jacrev(summed(layer)), randomness="same")(x),
    "vmap, same": lambda layer, x: vmap(lambda x: layer(x)[0], randomness="same")(samples(x)),
    "vmap, different": lambda layer, x: vmap(lambda x: layer(x)[0], randomness="different")(samples(x)),
    "gradients of samples": lambda layer, x: vmap(
        grad(loss_of(layer)), in_dims=(None, 0), randomness="different"
    )(weights_of(layer), samples(x)),
    "second order": twice,
    "checkpoint": again,
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_is_that_of_the_formula(name):
    made = []
    for backend in ("cpu", "eager"):
        layer = make("lstm", backend=backend)
        torch.manual_seed(3)
        made.append(torch.utils._pytree.tree_leaves(TRANSFORMS[name](layer, x_of())))
    for a, b in zip(*made, strict=True):
        assert_same(a, b, tolerance=1e-11)
    if name.startswith("vmap"):
        assert torch.equal(made[0][0][0], made[0][0][1]) == (name == "vmap, same")


def test_vmap_asks_how_to_draw():
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda x: make("lstm")(x)[0])(samples(x_of()))
    with pytest.raises(RuntimeError, match="randomness"):
        hessian(summed(make("lstm")))(x_of())


@pytest.mark.parametrize("is_training", [True, False])
def test_compiled_it_is_one_node_and_draws_the_same(is_training):
    torch.compiler.reset()
    layer, x, graphs = make("lstm").train(is_training), x_of().requires_grad_(), []

    def backend(graph, examples):
        graphs.append(graph)
        return graph

    results = []
    for module in (layer, torch.compile(layer, backend=backend, fullgraph=True)):
        torch.manual_seed(5)
        output = module(x)[0]
        results.append([output, *torch.autograd.grad(output.pow(2).sum(), [x, *layer.parameters()])])
    for a, b in zip(*results, strict=True):
        assert_same(a, b)
    nodes = [str(node.target) for node in graphs[0].graph.nodes]
    assert sum("cellfuse" in target for target in nodes) == 1
    assert sum("bernoulli" in target for target in nodes) == 3 * is_training


def test_exported_it_draws_and_computes_the_expectation(tmp_path):
    for is_training in (True, False):
        layer, x = make("lstm").train(is_training), x_of()
        program = torch.export.export(layer, (x,))
        torch.export.save(program, tmp_path / "layer.pt2")
        loaded = torch.export.load(tmp_path / "layer.pt2").module()
        results = []
        for module in (layer, loaded):
            torch.manual_seed(5)
            results.append(module(x)[0])
        assert_same(*results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_autocast", [False, True])
def test_low_precision_is_as_accurate_as_the_formula(dtype, is_autocast, monkeypatch):
    monkeypatch.setattr(
        torch, "bernoulli", lambda like, p: (torch.rand(like.shape, dtype=torch.float64) < p).to(like.dtype)
    )
    made = []
    for backend, precision in (("cpu", dtype), ("eager", torch.float64), ("eager", dtype)):
        precision = torch.float32 if is_autocast and precision == dtype else precision
        layer = make("lstm", 6, backend, zoneout=0.25, dropout=0.5).to(dtype).to(precision)
        x, *hx = (value.detach().to(dtype).to(precision).requires_grad_() for value in inputs(layer))
        with torch.autocast("cpu", dtype, enabled=is_autocast and precision == torch.float32):
            values = run(layer, x, hx)
        loss = sum(value.double().sin().sum() for value in values)
        made.append([*values, *torch.autograd.grad(loss, [x, *hx, *layer.parameters()])])
    for got, want, plain in zip(*made, strict=True):
        assert_as_accurate(got, want, plain, floor=4 * torch.finfo(dtype).eps)


def test_an_operator_refuses_masks_that_do_not_fit():
    """The kernel reads as much memory as the sizes promise."""
    layer, x = make("lstm"), x_of()
    case = layer._masks.drawn(layer._case(x, layer.initial_states(2, x)))
    [weights] = case.weights
    weights = {name: value.detach() for name, value in weights.items()}
    direction = Direction(case.cell, Sizes(5), True, False, False, tuple(weights))

    def forward(keep=False, **changed):
        given = [changed.get(name, value) for name, value in weights.items()]
        states = [state[0] for state in case.states]
        return library.forward(x, states, given, None, direction.text, keep)

    assert_same(forward()[0], forward(keep=True)[0])
    for name in ("zoneout:h", DROPOUT):
        with pytest.raises(ShapeError, match=f"cellfuse operator: {name} is"):
            forward(**{name: weights[name][:1]})
        with pytest.raises(BackendError, match="masks have none"):
            forward(**{name: weights[name].clone().requires_grad_()})


def test_explain_shows_the_mean():
    layer = cf.LSTM(3, 4, zoneout={"c": 0.25})
    text = str(cf.explain(layer, torch.randn(4, 2, 3)))
    assert "c ⊙ 0.25 + " in text
    assert "zoneout={'c': 0.25}" in text
