"""How a loop is spread over a GPU: the choice, in words, and that what is chosen fits."""

import pytest

import cellfuse as cf
from cellfuse.codegen.cuda.spread import TIERS, Device, described, registers, spread
from cellfuse.codegen.cuda.step import step_functions
from cellfuse.codegen.lower import lower

H100 = Device(132, 227 << 10, has_clusters=True)
A100 = Device(108, 163 << 10, has_clusters=False)


def chosen(name, units, batch, precision, device=H100, loop="forward", tier=""):
    step = step_functions(lower(cf.cells.find(name).step), units)
    return spread(step, loop, units, 1, precision, batch, device, tier)


# What the model says today; a change of the model changes the lines that it is meant to change.
LINES = """
lstm 64 B=16 fp32 H100 forward: one CTA for 1 sequence, 64 KB of R in registers
lstm 64 B=16 fp32 H100 backward: one CTA for 1 sequence, 64 KB of R in registers
lstm 128 B=16 tf32 H100 forward: a cluster of 8 CTAs for 8 sequences, 32 KB of R in registers
lstm 128 B=16 tf32 H100 backward: a cluster of 16 CTAs for 8 sequences, 16 KB of R in registers
gru 256 B=64 bf16 H100 forward: a cluster of 8 CTAs for 8 sequences, 48 KB of R in registers
gru 256 B=64 bf16 H100 backward: a cluster of 8 CTAs for 8 sequences, 48 KB of R in registers
lstm 512 B=16 fp16 H100 forward: 32 CTAs for 8 sequences, 64 KB of R in registers
lstm 512 B=16 fp16 H100 backward: a cluster of 16 CTAs for 8 sequences, 128 KB of R in registers
lstm 1024 B=1 bf16 H100 forward: 64 CTAs for 8 sequences, 128 KB of R in registers
lstm 1024 B=1 bf16 H100 backward: 64 CTAs for 8 sequences, 128 KB of R in registers
lstm 768 B=256 bf16 H100 forward: 32 CTAs for 32 sequences, 80 KB of R in registers, 64 KB in shared memory
lstm 768 B=256 bf16 H100 backward: 24 CTAs for 16 sequences, 88 KB of R in registers, 104 KB in shared memory
indrnn 256 B=64 fp32 H100 forward: one CTA for 1 sequence
indrnn 256 B=64 fp32 H100 backward: one CTA for 1 sequence
lstm 2048 B=16 bf16 H100 forward: 128 CTAs for 16 sequences, 148 KB of R in registers, 108 KB in shared memory
lstm 2048 B=16 bf16 H100 backward: per step
lstm 256 B=16 tf32 A100 forward: 16 CTAs for 8 sequences, 64 KB of R in registers
lstm 256 B=16 tf32 A100 backward: 8 CTAs for 8 sequences, 128 KB of R in registers
"""


def line(name, units, batch, precision, where, loop):
    device = {"H100": H100, "A100": A100}[where]
    found = chosen(name, units, batch, precision, device, loop)
    text = described(found[0]) if found else "per step"
    return f"{name} {units} B={batch} {precision} {where} {loop}: {text}"


CASES = (
    ("lstm", 64, 16, "fp32", "H100"),
    ("lstm", 128, 16, "tf32", "H100"),
    ("gru", 256, 64, "bf16", "H100"),
    ("lstm", 512, 16, "fp16", "H100"),
    ("lstm", 1024, 1, "bf16", "H100"),
    ("lstm", 768, 256, "bf16", "H100"),
    ("indrnn", 256, 64, "fp32", "H100"),
    ("lstm", 2048, 16, "bf16", "H100"),
    ("lstm", 256, 16, "tf32", "A100"),
)


def test_choices_in_words():
    made = [line(*case, loop) for case in CASES for loop in ("forward", "backward")]
    assert "\n".join(made) == LINES.strip()


@pytest.mark.parametrize("tier", TIERS.values())
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_what_is_chosen_fits(tier, precision):
    for units in (16, 100, 512):
        for one in chosen("gru", units, 33, precision, tier=tier, loop="backward"):
            assert TIERS[one.exchange] == tier
            assert one.shared_bytes <= H100.shared_bytes
            assert registers(one) <= 255
            assert one.at_once(H100.processors, 33) >= min(33, one.tile)


def test_without_clusters_none_is_chosen():
    assert all(one.cluster == 1 for one in chosen("lstm", 256, 16, "bf16", A100))


def test_a_large_batch_takes_several_launches_where_ctas_wait_for_each_other():
    one = chosen("lstm", 768, 256, "bf16", tier="grid")[0]
    at_once = one.at_once(H100.processors, 256)
    assert at_once < 256
    assert one.grid(at_once)[0] <= H100.processors


def test_what_would_take_longer_than_step_by_step_is_not_offered():
    assert chosen("lstm", 1024, 512, "bf16") == ()
    assert chosen("lstm", 1024, 512, "bf16", tier="grid")
