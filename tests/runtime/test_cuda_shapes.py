"""Empty, smallest and ragged inputs on every tier of the cuda backend, both directions, by the emulator."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from cellfuse.runtime import cuda_step, ragged, whole_loop
from compare import assert_same
from runtime.emulated import emulated, pair, results

pytestmark = emulated
# The odd sizes that each tier takes.
SIZES = {"per step": (1, 7), "one CTA": (1, 7), "cluster": (9,), "grid": (11,)}
LENGTHS = [(4,), (1,), (2, 2), (1, 3, 1), (5, 1, 4, 4, 2)]
CLOSE = {torch.float32: 3e-6, torch.bfloat16: 0.03, torch.float16: 0.004}
TIERS = [(tier, H) for tier, sizes in SIZES.items() for H in sizes]


@pytest.fixture(autouse=True)
def exact(device, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")


def compare(monkeypatch, tier, name, H, input, dtype=torch.float32):
    """With the formula in float64, initial states and all gradients, that of x, too."""
    monkeypatch.setattr(cuda_step, "TIER", tier)
    ours, eager = pair(name, 3, H, bidirectional=True)
    eager.load_state_dict(ours.to(dtype).state_dict())
    packed = isinstance(input, tuple)
    T, B = (max(input), len(input)) if packed else input.shape[:2]
    values = torch.randn(T, B, 3).to(dtype) if packed else input.to(dtype)
    assert ours.plan(values).startswith(f"cuda, {tier if values.numel() else 'no kernel'}: ")
    states = [torch.rand_like(s) for s in ours.initial_states(B, values)]
    found = []
    for layer, kind in ((ours, dtype), (eager, torch.float64)):
        x, *given = (v.detach().to(kind).requires_grad_() for v in (values, *states))
        whole = pack_padded_sequence(x, torch.tensor(input), enforce_sorted=False) if packed else x
        found.append(results(layer, whole, tuple(given) if len(given) > 1 else given[0], [x]))
    for a, b in zip(*found, strict=True):
        assert a.dtype == dtype
        size = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
        assert_same(a, b, tolerance=CLOSE[dtype] * size)


@pytest.mark.parametrize("name", ["gru", "lstm"])
@pytest.mark.parametrize(("tier", "H"), TIERS)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_packed(monkeypatch, tier, H, name, lengths):
    compare(monkeypatch, tier, name, H, lengths)


@pytest.mark.parametrize("name", ["gru", "lstm"])
@pytest.mark.parametrize(("tier", "H"), TIERS)
@pytest.mark.parametrize("shape", [(0, 2), (3, 0), (0, 0), (1, 1), (3, 1), (1, 3)], ids=str)
def test_equal_lengths(monkeypatch, tier, H, name, shape):
    compare(monkeypatch, tier, name, H, torch.randn(*shape, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tier", "H"), [("per step", 7), ("one CTA", 9), ("cluster", 21), ("grid", 21)])
def test_packed_in_16_bits(monkeypatch, tier, H, dtype):
    compare(monkeypatch, tier, "lstm", H, (5, 1, 4, 4, 2), dtype)


@pytest.mark.parametrize("name", ["indrnn", "slstm", "mingru", "peephole_lstm"])
def test_packed_for_other_cells(monkeypatch, name):
    """Without a product, with blocks, with an output that is no state, with parameters of its own."""
    compare(monkeypatch, "one CTA", name, 8, (3, 1, 2))


@pytest.mark.parametrize("tier", ["one CTA", "cluster", "grid"])
def test_lost_lengths_are_found(monkeypatch, tier):
    def none(times, like):
        lengths, positions = ragged.on_device(times, like)
        return torch.full_like(lengths, times.steps), positions

    monkeypatch.setattr(whole_loop, "ragged", type("Planted", (), {"on_device": staticmethod(none)}))
    with pytest.raises(AssertionError):
        compare(monkeypatch, tier, "gru", SIZES[tier][0], (1, 3, 1))
