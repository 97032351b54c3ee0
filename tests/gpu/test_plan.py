"""How a loop is spread over a GPU: the choice, in words, and that what is chosen fits."""

import pytest

import cellfuse as cf
from cellfuse.codegen.cuda.plan import A100, BYTES, H100, RTX5090, plan, registers
from cellfuse.codegen.lower import lower
from codegen import cells_of_tests

CELLS = cf.cells.CELLS | cells_of_tests.CELLS
DEVICES = {"H100": H100, "A100": A100, "RTX5090": RTX5090}


def planned(name, units, batch, precision, device="H100", **how):
    program = lower(CELLS[name].step)
    return plan(program, units, batch=batch, precision=precision, device=DEVICES[device], **how)


# What the model says today; a change of the model changes the lines that it is meant to change.
GOLDEN = {
    "lstm 64 16 fp32 H100": (
        "tier a: one CTA; "
        "forward 64 KB of weights in registers, backward 64 KB of weights in registers a CTA; "
        "16 groups of 1 sequence; "
        "about 0.24 + 0.20 us a step"
    ),
    "lstm 128 16 tf32 H100": (
        "tier a: a cluster of 8, st.async; "
        "forward 32 KB of weights in registers, backward 32 KB of weights in registers a CTA; "
        "2 groups of 8 sequences; "
        "about 0.55 + 0.50 us a step"
    ),
    "gru 256 64 bf16 H100": (
        "tier a: a cluster of 8, st.async; "
        "forward 48 KB of weights in registers, backward 48 KB of weights in registers a CTA; "
        "8 groups of 8 sequences; "
        "about 0.60 + 0.62 us a step"
    ),
    "lstm 512 16 fp16 H100": (
        "tier a: a cluster of 16, st.async; "
        "forward 128 KB of weights in registers, backward 128 KB of weights in registers a CTA; "
        "2 groups of 8 sequences; "
        "about 0.92 + 1.06 us a step"
    ),
    "lstm 1024 1 bf16 H100": (
        "tier b: 64 CTAs, memory written once; "
        "forward 128 KB of weights in registers, "
        "backward 116 KB of weights in registers and 12 KB in shared memory a CTA; "
        "1 group of 8 sequences; "
        "about 1.06 + 1.83 us a step"
    ),
    "lstm 768 256 bf16 H100": (
        "tier c: the weights fit, but H=768, B=256 would take 27 us a step, cuBLAS and a kernel about 24"
    ),
    "indrnn 256 64 fp32 H100": ("tier a: one CTA; 64 groups of 1 sequence; about 0.13 + 0.08 us a step"),
    "lstm 1024 1 tf32 H100": (
        "tier c: none of 2 ways to hold H=1024 in tf32 fits; the nearest is 64 CTAs for 8 sequences: "
        "beside 116 KB of weights in registers the backward loop needs 274 KB of shared memory "
        "(140 KB weights, 128 KB operand, 5 KB sums), a CTA has 227 KB"
    ),
    "lstm 2048 16 bf16 H100": (
        "tier c: none of 2 ways to hold H=2048 in bf16 fits; the nearest is 128 CTAs for 8 sequences: "
        "beside 116 KB of weights in registers the backward loop needs 274 KB of shared memory "
        "(140 KB weights, 128 KB operand, 5 KB sums), a CTA has 227 KB"
    ),
    "lstm 4096 16 bf16 H100": (
        "tier c: H=4096 in bf16 has 128.0 MB of recurrent weights or too large an operand; "
        "132 CTAs hold about 28 MB in registers and shared memory"
    ),
    "lstm 1024 256 bf16 H100": (
        "tier c: the weights fit, but H=1024, B=256 would take 41 us a step, cuBLAS and a kernel about 24"
    ),
    "mgu 64 16 bf16 H100": ("tier c: mgu has 2 stages in each step: one needs all units of the one before"),
    "lstm 128 16 fp64 H100": ("tier c: kernels of the whole loop have no fp64"),
    "lstm 256 16 tf32 A100": (
        "tier b: 16 CTAs, memory written once; "
        "forward 64 KB of weights in registers, backward 64 KB of weights in registers a CTA; "
        "2 groups of 8 sequences; "
        "about 0.81 + 1.08 us a step"
    ),
    "gru 256 16 tf32 RTX5090": (
        "tier a: a cluster of 8, st.async; "
        "forward 96 KB of weights in registers, backward 96 KB of weights in registers a CTA; "
        "2 groups of 8 sequences; "
        "about 0.84 + 0.72 us a step"
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_the_reason_in_words(case):
    name, units, batch, precision, device = case.split()
    made = planned(name, int(units), int(batch), precision, device)
    assert made.reason == GOLDEN[case]
    assert made.reason.startswith(f"tier {made.tier}: ")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", BYTES)
def test_what_is_chosen_fits(device, precision):
    chosen = 0
    for units in (16, 100, 512):
        for exchange in ("none", "messages", "write_once"):
            made = planned("gru", units, 33, precision, device, exchange=exchange)
            if made.tier == "c":
                continue
            chosen += 1
            for kernel in (made.infer, made.forward, made.backward):
                assert kernel.exchange == exchange
                assert kernel.shared_bytes <= DEVICES[device].shared_bytes
                assert registers(kernel) <= 255
            if exchange == "write_once":  # all CTAs of a launch at the same time
                assert made.forward.grid(min(made.at_once, 33))[0] <= DEVICES[device].processors
    assert chosen >= 4


def test_a_large_batch_takes_several_launches_where_ctas_wait_for_each_other():
    made = planned("lstm", 768, 256, "bf16", exchange="write_once")
    assert 0 < made.at_once < 256
    assert made.forward.grid(made.at_once)[0] <= H100.processors
    assert "waves" in made.reason


def test_without_clusters_none_is_chosen():
    for units in (128, 256, 512):
        made = planned("lstm", units, 16, "bf16", "A100")
        assert made.tier == "b"
        assert made.forward.cluster == 1


def test_a_user_who_asks_for_a_way_gets_it_however_long_it_takes():
    assert planned("lstm", 1024, 256, "bf16").tier == "c"
    assert planned("lstm", 1024, 256, "bf16", exchange="write_once").tier == "b"
