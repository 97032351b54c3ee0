"""Both directions of a layer in one launch of the cuda backend, run by the emulator; or why not."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from cellfuse.codegen.cuda.plan import Device
from cellfuse.runtime import cuda_step, whole_loop
from compare import assert_same
from runtime.emulated import emulated, pair, results

pytestmark = emulated
TIERS = {"one CTA": ("lstm", 7), "cluster": ("gru", 9), "grid": ("rnn", 10)}


def compare(monkeypatch, tier, lengths=None, **options):
    """With the formula in float64. Gives the plan."""
    monkeypatch.setattr(cuda_step, "TIER", tier)
    name, H = TIERS[tier]
    ours, eager = pair(name, 3, H, bidirectional=True, **options)
    eager.load_state_dict(ours.float().state_dict())
    x = torch.randn(4, 3, 3)
    states = tuple(torch.rand_like(s).requires_grad_() for s in ours.initial_states(3, x))
    exact = tuple(s.detach().double().requires_grad_() for s in states)
    states, exact = (v if len(v) > 1 else v[0] for v in (states, exact))
    input = x if lengths is None else pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    double = input.to(torch.float64)
    for a, b in zip(results(ours, input, states), results(eager, double, exact), strict=True):
        assert_same(a, b, tolerance=3e-6 * max(1.0, float(b.detach().abs().max())))
    return ours.plan(x)


@pytest.mark.parametrize("lengths", [None, (2, 4, 1)])
@pytest.mark.parametrize("tier", TIERS)
def test_one_launch_for_both(launcher, monkeypatch, tier, lengths):
    plan = compare(monkeypatch, tier, lengths)
    assert plan.endswith("; both directions in one launch")
    assert [entry for entry, _ in launcher.launched] == ["forward_loop", "backward_loop"]
    alone = cuda_step.plan(cuda_step.wanted(*_layer(tier), 3), torch.device("cpu")).spread[1][1]
    assert launcher.launched[0][1][0] >= 2 * alone.ctas


def _layer(tier):
    name, H = TIERS[tier]
    layer, _ = pair(name, 3, H)
    return layer.cell, True, cuda_step.Sizes(H, 0, 1), torch.float32


def test_kept_values_may_come_back_as_other_tensors(launcher, monkeypatch):
    """As from a hook that moves them to the host and back."""
    with torch.autograd.graph.saved_tensors_hooks(lambda value: value.clone(), lambda value: value.clone()):
        compare(monkeypatch, "one CTA", (2, 4, 1))


def second_forward(text, given):
    return text, given | {"reversed": 0}


def same_weights(text, given):
    return text.replace("((i64)direction * MATRICES + matrix)", "((i64)0 * MATRICES + matrix)"), given


def other_final(text, given):
    return text.replace("i.start = ((i64)direction *", "i.start = ((i64)(1 - direction) *"), given


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("bug", [second_forward, same_weights, other_final])
def test_a_planted_bug_is_found(launcher, monkeypatch, tier, bug):
    launcher.change = bug
    with pytest.raises(AssertionError):
        compare(monkeypatch, tier)


def test_memory_taken_for_side_by_side_that_is_not_is_found(launcher, monkeypatch):
    monkeypatch.setattr(whole_loop, "_side_by_side", lambda parts: parts[0])
    with pytest.raises(AssertionError):
        test_kept_values_may_come_back_as_other_tensors(launcher, monkeypatch)


def test_one_after_the_other_where_both_find_no_room(launcher, monkeypatch):
    monkeypatch.setattr(cuda_step, "device_of", lambda device: Device((9, 0), 3, 227 << 10))
    plan = compare(monkeypatch, "grid")
    assert "directions one after the other (2 x 2 CTAs do not find room on this device" in plan
    assert [entry for entry, _ in launcher.launched] == ["forward_loop"] * 2 + ["backward_loop"] * 2


def plan_of(name, H, batch, **options):
    layer, _ = pair(name, 3, H, bidirectional=True, **({"dtype": torch.float32} | options))
    return layer.plan(torch.empty(2, batch, 3, dtype=options.get("dtype", torch.float32)))


def test_one_after_the_other_where_that_is_faster(launcher, monkeypatch):
    """Three clusters for one direction are one for both, and so three times the waves."""
    few = Device((9, 0), 6, 227 << 10, ((2, 3),))
    monkeypatch.setattr(cuda_step, "device_of", lambda device: few)
    monkeypatch.setattr(cuda_step, "TIER", "cluster")
    assert "one after the other (in one launch they would take" in plan_of("lstm", 64, 48)


def test_step_by_step_the_plan_says_so(device, monkeypatch):
    monkeypatch.setattr(cuda_step, "TIER", "")
    said = "; directions one after the other (each of their steps is a launch)"
    assert plan_of("lstm", 8, 2, dtype=torch.float64).endswith(said)
    assert plan_of("lstm", 8, 2, recompute=True).endswith(said)
    assert said not in pair("lstm", 3, 8)[0].plan(torch.empty(2, 2, 3, dtype=torch.float64))
