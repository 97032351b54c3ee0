"""Persistent kernels on the emulator, against the interpreted Program in float64: results and gradients."""

import numpy as np
import pytest

import cellfuse as cf
from cellfuse.codegen.cuda.persistent import Persistent
from cellfuse.codegen.cuda.step import step_functions, why_no_step
from cellfuse.codegen.lower import lower
from codegen import cells_of_tests
from gpu.emulator.launcher import WHY_NOT, EmulatorError
from gpu.persistent_run import Case, Outcome, run

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
CELLS = cf.cells.CELLS | cells_of_tests.CELLS

# Relative errors of whole results at these sizes; a wrong index or a lost value makes one near 1.
TOLERANCE = {"fp32": 1e-6, "tf32": 6e-4, "bf16": 6e-3, "fp16": 6e-4}

WHOLE_LOOP = [name for name, cell in CELLS.items() if not why_no_step(lower(cell.step))]


def check(name, units, loops=("forward", "backward"), **how):
    case = Case(CELLS[name], units, **how)
    wrong = run(case, loops=loops).wrong(TOLERANCE[case.precision])
    assert not wrong, f"{case}: {wrong}"


def test_the_comparison_finds_what_is_not_a_number_and_what_is_off():
    want = {"a": np.ones(4), "b": np.ones(4)}
    assert not Outcome(dict(want), want).wrong(1e-6)
    assert Outcome({"a": np.ones(4), "b": np.full(4, np.nan)}, want).wrong(1e-6).keys() == {"b"}
    assert Outcome({"a": np.ones(4) + 1e-5, "b": np.ones(4)}, want).wrong(1e-6).keys() == {"a"}
    with pytest.raises(AssertionError, match="instead of"):
        Outcome({"a": np.ones(3), "b": np.ones(4)}, want).wrong(1e-6)


def test_which_cells_have_kernels_of_the_whole_loop():
    assert set(WHOLE_LOOP) == {
        *("rnn", "rnn_relu", "gru", "lstm", "coupled_lstm", "lstm_without_forget", "peephole_lstm"),
        *("ran", "ugrnn", "slstm", "indrnn", "mingru", "minlstm", "qrnn", "sru", "leaky"),
    }


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gru_reset_before", "2 stages in each step"),
        ("mgu", "2 stages in each step"),
        ("minimal_rnn", "2 stages in each step"),
        ("projected_lstm", "projection"),
        ("layer_norm_lstm", "sums over the units in each step, such as layer normalisation"),
        ("focus", "cumulative sum"),
        ("wordy", "multiplies several values by matrices"),
    ],
)
def test_a_cell_without_says_why(name, why):
    program = lower(CELLS[name].step)
    assert why in why_no_step(program)
    with pytest.raises(ValueError, match=why):
        step_functions(program, 8)


def test_without_a_kept_value_the_product_would_be_needed_again():
    program = lower(CELLS["lstm"].step, recompute=True)
    assert "needs the recurrent product again" in why_no_step(program)


@pytest.mark.parametrize("name", WHOLE_LOOP)
def test_every_cell_alone_and_in_a_cluster(name):
    heads = 2 if CELLS[name].recurrence == "blocks" else 1
    has_product = bool(step_functions(lower(CELLS[name].step), 8).matrices)
    check(name, 13, ("infer", "forward", "backward"), steps=4, batch=3, heads=heads)
    exchange = "messages" if has_product else "none"
    check(name, 20, steps=5, batch=5, heads=heads, exchange=exchange, ctas=3, tile=2, directions=2)


EXCHANGES = ("cluster_barrier", "messages", "counter", "write_once")


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize(
    ("name", "units", "how"),
    [
        ("gru", 27, {"ctas": 4, "directions": 2, "lengths": (5, 0, 3, 1, 4), "batch": 5, "steps": 5}),
        ("lstm", 32, {"ctas": 2, "tile": 4, "in_registers": 5, "threads": 96}),
        ("rnn", 9, {"ctas": 3, "tile": 1, "batch": 1, "steps": 1, "is_reversed": True}),
    ],
)
def test_exchanges_in_float32(exchange, name, units, how):
    check(name, units, exchange=exchange, **how)


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
@pytest.mark.parametrize(
    ("name", "units", "how"),
    [
        ("lstm", 29, {"batch": 11}),
        ("lstm", 64, {"exchange": "messages", "ctas": 4, "batch": 17, "tile": 16, "in_registers": 5}),
        ("gru", 27, {"exchange": "messages", "ctas": 2, "threads": 128, "directions": 2}),
        ("ugrnn", 30, {"exchange": "write_once", "ctas": 4, "steps": 5, "lengths": (5, 2, 0)}),
        ("indrnn", 40, {"ctas": 2, "batch": 3}),  # no product
    ],
)
def test_tensor_cores(precision, name, units, how):
    check(name, units, precision=precision, **({"tile": 8} | how))


@pytest.mark.parametrize("exchange", ["messages", "write_once"])
def test_a_batch_in_several_launches(exchange):
    check("gru", 12, batch=7, at_once=4, exchange=exchange, ctas=3, directions=2)


@pytest.mark.parametrize("exchange", ["cluster_barrier", "counter"])
def test_tensor_cores_with_the_plain_barriers(exchange):
    check("gru", 32, precision="bf16", tile=8, exchange=exchange, ctas=4, threads=32)


@pytest.mark.parametrize(
    ("first", "second"), [("cluster_barrier", "messages"), ("counter", "write_once"), ("none", "none")]
)
def test_the_same_bits_by_every_exchange_and_schedule(first, second):
    results = []
    for exchange, seed in ((first, 1), (second, 2)):
        ctas = 1 if exchange == "none" else 2
        case = Case(CELLS["lstm"], 16, batch=2, exchange=exchange, ctas=ctas, seed=1)
        results.append(run(case, schedule=seed).got)
    for name, value in results[0].items():
        np.testing.assert_array_equal(value, results[1][name], err_msg=name)


def test_not_a_number_goes_through_the_exchange_and_no_further_than_its_sequence():
    for exchange in ("messages", "write_once"):
        case = Case(CELLS["rnn"], 8, batch=3, steps=3, exchange=exchange, ctas=2, tile=3)
        got = run(case, poison=(1, 0xFFFFFFFF), loops=("infer", None)).got["infer output"]
        assert np.isnan(got[:, 1]).all()
        assert np.isfinite(got[:, [0, 2]]).all()


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"ctas": 2}, "need an exchange"),
        ({"exchange": "messages"}, "nothing to exchange"),
        ({"precision": "bf16", "tile": 4}, "multiples of 8"),
        ({"threads": 48}, "multiple of 32"),
        ({"exchange": "messages", "ctas": 3}, "some would have none"),
        ({"precision": "fp8"}, "none of fp32"),
    ],
)
def test_a_kernel_that_cannot_be_says_why(how, why):
    step = step_functions(lower(CELLS["lstm"].step), 8)
    with pytest.raises(ValueError, match=why):
        Persistent(step, "forward", 8, **how)


# ---- planted bugs: each must be found, whatever the order of the threads ----

SMALL = {
    "messages": Case(CELLS["gru"], 12, steps=6, batch=3, exchange="messages", ctas=3, tile=2),
    "cluster_barrier": Case(CELLS["gru"], 12, steps=6, batch=3, exchange="cluster_barrier", ctas=3),
    "counter": Case(CELLS["gru"], 12, steps=6, batch=3, exchange="counter", ctas=3),
    "write_once": Case(CELLS["gru"], 12, steps=6, batch=3, exchange="write_once", ctas=3),
    "none": Case(CELLS["gru"], 12, steps=6, batch=3),
    "tensor": Case(
        CELLS["lstm"], 32, steps=5, batch=9, exchange="messages", ctas=4, tile=8, threads=64, precision="bf16"
    ),
}

# (case, what is in the text, what is planted instead)
BUGS = {
    "a parity that is wrong": ("messages", "(number - 1) >> 1 & 1", "number >> 1 & 1"),
    "no wait for the messages": ("messages", "barrier_wait(arrived", "if (false) barrier_wait(arrived"),
    "no wait for partial sums": (
        "messages",
        "barrier_wait(shared.arrived",
        "if (false) barrier_wait(shared.arrived",
    ),
    "bytes that nobody expects": (
        "messages",
        "barrier_expect(barrier, COUNT * 16);",
        "barrier_expect(barrier, 0);",
    ),
    "one buffer where two are needed": (
        "messages",
        "constexpr int BUFFERS = 2;",
        "constexpr int BUFFERS = 1;",
    ),
    "a start before the others": ("messages", "if constexpr (CLUSTER > 1) sync_cluster();\n  }", "}"),
    "a slice at the wrong place": ("messages", "return of_rank * SLICE_CHUNKS * 4 +", "return of_rank * 4 +"),
    "partial sums to the wrong owner": (
        "messages",
        "send16(to, row / UNITS,",
        "send16(to, CTAS - 1 - row / UNITS,",
    ),
    "partial sums in one inbox": ("messages", "((number & 1) * CTAS + from)", "(from)"),
    "no barrier of the cluster": (
        "cluster_barrier",
        "== CLUSTER_BARRIER) sync_cluster();",
        "== CLUSTER_BARRIER) {}",
    ),
    "a counter that is one step early": ("counter", "(u32)number * CTAS)", "(u32)(number - 1) * CTAS)"),
    "a release that is none": ("counter", "add_release(counter, 1);", "*counter += 1;"),
    "words that are not there yet": ("write_once", "!is_missing) break;", "true) break;"),
    "a flag of one word only": ("write_once", "value[i].x == UNSET |", "value[i].x == UNSET; is_missing &= "),
    "the wrong step's words": ("write_once", "? number & 1 : number - 1;", "? number & 1 : number & 1;"),
    "rows behind the batch": ("none", "&& first + i.b < a.batch;", ";"),
    "the other direction": ("none", "return is_reversed ?", "return !is_reversed ?"),
    "the state of a step too late": ("none", "n > 0 ? n - 1 : 0", "n"),
    "a split left out": (
        "none",
        "split < SPLITS; split++) total +=",
        "split < SPLITS - 1; split++) total +=",
    ),
    "rows of a fragment swapped": ("tensor", "lane / 4 + (j & 1) * 8;", "lane / 4 + (j >> 1) * 8;"),
    "columns of a fragment swapped": (
        "tensor",
        "* 16 + q * 4 + part % 2 * 2 + half",
        "* 16 + q * 4 + half * 2 + part % 2",
    ),
    "accumulators swapped": (
        "tensor",
        "* 16 + (j >> 1) * 8 + (n * 8 + (j & 1))",
        "* 16 + (j & 1) * 8 + (n * 8 + (j >> 1))",
    ),
    "a half too far": ("tensor", "* 16 + half * 8 + lane / 4", "* 16 + lane / 4"),
}


def is_found(case, mutate):
    """In how many of three schedules the bug shows."""
    found = 0
    for seed in range(3):
        try:
            found += bool(run(case, mutate, schedule=seed).wrong(TOLERANCE[case.precision]))
        except EmulatorError:
            found += 1
        except AssertionError:  # written behind a buffer
            found += 1
    return found


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug):
    which, text, planted = BUGS[bug]
    changed = []

    def mutate(source):
        changed.append(text in source)
        return source.replace(text, planted)

    assert is_found(SMALL[which], mutate) >= 2
    assert any(changed)


@pytest.mark.parametrize("which", SMALL)
def test_without_a_planted_bug_nothing_is_found(which):
    assert is_found(SMALL[which], lambda text: text) == 0


# The block barriers that each kernel runs, in the order of the text; all that count, for at least one
# exchange each. The others stand in branches that this kernel does not have.
BARRIERS = {
    "messages": (1, 5, 6, 7, 8),
    "counter": (0, 1, 2, 3, 4, 5, 6, 9),
    "write_once": (0, 1, 4, 5, 6, 9),
    "none": (0, 1, 5, 6, 9),
}


@pytest.mark.parametrize(("which", "number"), [(which, n) for which, all_ in BARRIERS.items() for n in all_])
def test_a_block_barrier_that_is_dropped_is_found(which, number):
    def mutate(source):
        parts = source.split("__syncthreads();")
        if number + 1 < len(parts):
            parts[number : number + 2] = [parts[number] + parts[number + 1]]
        return "__syncthreads();".join(parts)

    assert is_found(SMALL[which], mutate)
