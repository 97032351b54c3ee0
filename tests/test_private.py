"""Every private name of torch that we use still exists and still says what we think it says."""

import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad

from cellfuse.runtime import private


def seen_inside(transform, question):
    """What `question` answers inside a transform, and after it."""
    answers = []

    def function(x):
        answers.append(question())
        return x.sum()

    transform(function)(torch.ones(2, 2))
    return answers[0], question()


@pytest.mark.parametrize(
    "transform",
    [torch.func.vmap, torch.func.grad, torch.func.jacrev, torch.func.jacfwd, torch.func.hessian],
    ids=lambda transform: transform.__name__,
)
def test_functorch_is_active_only_inside_its_transforms(transform):
    assert seen_inside(transform, private.is_functorch_active) == (True, False)


def test_plain_autograd_is_not_functorch():
    x = torch.ones(2, requires_grad=True)
    x.sum().backward()
    assert not private.is_functorch_active()


def test_forward_ad_is_active_inside_a_dual_level():
    assert not private.is_forward_ad_active()
    with forward_ad.dual_level():
        assert private.is_forward_ad_active()
    assert not private.is_forward_ad_active()


def test_similar_tensors_are_like_the_first_ones_in_all_that_kernels_rely_on():
    value, other = torch.ones(3, 4), torch.ones(2)
    are_alike = private.similarity((value, other))
    assert are_alike(value, other)
    assert are_alike(torch.zeros(4, 4)[1:], other)
    different = (
        *(None, torch.nn.Parameter(value), value.double(), value.to("meta"), value[:2], value[None]),
        *(torch.ones(4, 3).t(), torch.ones(3, 8)[:, ::2], torch.ones(3, 4, requires_grad=True)),
        *(torch._neg_view(value), torch._efficientzerotensor((3, 4)), value.to_sparse()),
    )
    for each in different:
        assert not are_alike(each, other)
    with torch.autocast("cpu", torch.bfloat16):
        assert not are_alike(value, other)
    with torch.inference_mode():
        assert not are_alike(value, other)
        assert private.similarity((value, other))(value, other)


def test_similarity_keeps_no_tensor():
    value = torch.ones(3)
    seen, are_alike = weakref.ref(value), private.similarity((value,))
    del value
    assert seen() is None
    assert are_alike(torch.ones(3))


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_operators_are_torchs(name):
    assert private.torch_operator(name) is getattr(torch, name)
    assert callable(private.torch_operator(name + "_cell"))


def test_autocast_of_any_device_is_seen():
    assert not private.is_any_autocast_enabled()
    with torch.autocast("cpu", torch.bfloat16):
        assert private.is_any_autocast_enabled()
    assert not private.is_any_autocast_enabled()


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux lists what a processor can do")
def test_products_are_quick_where_the_processor_lists_instructions_for_them():
    flags = set(Path("/proc/cpuinfo").read_text().split())
    for dtype, sure in ((torch.bfloat16, {"amx_bf16", "avx512_bf16"}), (torch.float16, {"amx_fp16"})):
        assert private.is_quick_in(dtype) <= bool(flags & (sure | {"amx_tile"}))
        assert private.is_quick_in(dtype) >= bool(flags & sure)
    assert not private.is_quick_in(torch.float32)


def test_bfloat16_lstm_runs_where_onednn_says_so_and_fails_where_not():
    layer = torch.nn.LSTM(8, 8, dtype=torch.bfloat16).eval()
    x = torch.randn(2, 1, 8, dtype=torch.bfloat16)
    with torch.no_grad():
        if private.has_onednn_bfloat16():
            assert layer(x)[0].isfinite().all()
        else:
            with pytest.raises(RuntimeError):
                layer(x)


@pytest.mark.parametrize("is_autocast", [True, False])
def test_float16_lstm_runs_where_it_was_seen_to(is_autocast):
    dtype = torch.float32 if is_autocast else torch.float16
    layer, x = torch.nn.LSTM(8, 8, dtype=dtype), torch.randn(2, 1, 8, dtype=dtype)
    has = private.has_onednn_float16(is_autocast)
    assert has is private.has_onednn_float16(is_autocast)
    failed = []
    for needs_grad in (False, True):  # some processors run the one without the other
        try:
            with (
                torch.set_grad_enabled(needs_grad),
                torch.autocast("cpu", torch.float16, enabled=is_autocast),
            ):
                output = layer(x)[0]
            if needs_grad:
                output.float().sum().backward()
            assert output.isfinite().all()
        except RuntimeError as error:
            failed.append(error)
    if is_autocast or has:
        assert has is not bool(failed)


def test_hooks_for_all_modules_are_seen():
    assert not private.has_global_hooks()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert private.has_global_hooks()
    handle.remove()
    assert not private.has_global_hooks()


def test_a_constant_in_graphs_is_asked_for_while_they_are_traced():
    asked = []

    @private.constant_in_graphs
    def size():
        asked.append(torch.compiler.is_compiling())  # nothing that a graph may contain
        return 2 + len(sys.argv[:0])

    compiled = torch.compile(lambda x: x * size(), backend="eager", fullgraph=True)
    for _ in range(2):
        assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 2.0))
    assert len(asked) == 1
    assert (
        size._dynamo_marked_constant
        == torch.compiler.assume_constant_result(lambda: 2)._dynamo_marked_constant
    )
