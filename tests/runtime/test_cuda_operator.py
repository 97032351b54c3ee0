"""Whole-loop kernels of the cuda backend as an operator in the graphs of torch.compile, by the emulator."""

import pytest
import torch

from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.runtime import cuda_step, library
from cellfuse.runtime.direction import Direction
from runtime.emulated import emulated, pair, results

pytestmark = emulated
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = {"one CTA": 6, "cluster": 24, "grid": 24}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tier", SIZES)
def test_the_compiled_layer_runs_the_same_kernels(launcher, monkeypatch, tier, dtype):
    monkeypatch.setattr(cuda_step, "TIER", tier)
    ours, _ = pair("lstm", 3, SIZES[tier], dtype=dtype)
    torch._dynamo.reset()  # its limit counts the layers of all tests
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 2, 3, dtype=dtype)
    want = results(ours, x)
    assert [entry for entry, _ in launcher.launched] == ["forward_loop", "backward_loop"]
    for a, b in zip(results(compiled, x), want, strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b)
    assert launcher.launched[2:] == launcher.launched[:2]


def test_a_batch_of_any_size_is_one_graph(launcher, monkeypatch):
    monkeypatch.setattr(cuda_step, "TIER", "one CTA")
    ours, _ = pair("gru", 3, 6, dtype=torch.bfloat16)
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for T, B in ((4, 5), (7, 8), (2, 9)):  # other sizes than those of the layer
            x = torch.randn(T, B, 3, dtype=torch.bfloat16)
            assert all(map(torch.equal, results(compiled, x), results(ours, x)))


def operands(name, dtype, is_reverse=False):
    """What the operator takes."""
    layer, _ = pair(name, 3, 6, dtype=dtype)
    weights = {k: v.detach() for k, v in layer._weights(layer._blocks()[0]).items()}
    direction = Direction(
        layer.cell, Sizes(6, 0, layer.num_heads), True, is_reverse, False, tuple(weights), "cuda"
    )
    states = [torch.rand(2, 6, dtype=dtype) for _ in layer.cell.states]
    return torch.randn(3, 2, 3, dtype=dtype), states, list(weights.values()), None, direction.text, True


def check_promise(given):
    """Real results are as the fake ones, and no two share memory."""
    x, states, weights, sizes, text, _ = given
    with torch.no_grad():
        made = library.forward(*given)
    promised = library._forward_fake(*given)
    for k, (a, b) in enumerate(zip(made, promised, strict=True)):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride()), k
    assert len({value.untyped_storage().data_ptr() for value in made}) == len(made)
    gradients = [torch.randn_like(value) for value in made[: 1 + len(states)]]
    rest = x, states, weights, sizes, list(made[1 + len(states) :]), text
    with torch.no_grad():
        found = library.backward(gradients, *rest)
    for a, b in zip(found, library._backward_fake(gradients, *rest), strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
    return [*made[: 1 + len(states)], *found], made


@pytest.mark.parametrize("is_reverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tier", ["one CTA", "per step"])
@pytest.mark.parametrize("name", ["lstm", "slstm", "mingru"])
def test_results_are_what_the_operator_promises(launcher, monkeypatch, name, tier, dtype, is_reverse):
    monkeypatch.setattr(cuda_step, "TIER", tier)
    check_promise(operands(name, dtype, is_reverse))
    assert (launcher.launched[0][0] == "forward_loop") == (tier == "one CTA")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_batch_that_runs_step_by_step_keeps_the_promise(launcher, monkeypatch, dtype):
    """The promise knows no batch; what a large one keeps in 16 bits comes back as the same numbers."""
    given = operands("lstm", dtype)
    torch.manual_seed(1)
    want, kept = check_promise(given)
    assert kept[-1].dtype == dtype
    cuda_step.clear()
    monkeypatch.setattr(cuda_step, "TIER", "one CTA")
    monkeypatch.setattr(Direction, "runner", lambda self, x, *_: self.kernel(x))
    torch.manual_seed(1)
    got, kept = check_promise(given)
    assert kept[-1].dtype == torch.float32
    assert all(map(torch.equal, got, want))


def test_a_wrong_promise_is_found(launcher, monkeypatch):
    monkeypatch.setattr(cuda_step, "TIER", "one CTA")
    fake = library._forward_fake

    def forget(*given):
        with monkeypatch.context() as planted:
            planted.setattr(Direction, "may_be_whole", lambda self, x, is_packed: False)
            return fake(*given)

    monkeypatch.setattr(library, "_forward_fake", forget)
    with pytest.raises(AssertionError):
        check_promise(operands("lstm", torch.bfloat16))
