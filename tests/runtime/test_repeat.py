"""The same work again, in pieces, in other company, on other threads: what is the same bits, what is close.

docs/en/numerics.md says which is which.
"""

import os
import time
import warnings

import pytest
import torch

import cellfuse as cf
from cellfuse.runtime.kernel_call import SESSIONS
from compare import assert_same
from runtime.test_poison import CELLS, all_of, layer_of, tuple_of

# (input size, hidden size, T, B): padded units and whole vectors.
SIZES = [(7, 13, 9, 5), (16, 32, 20, 37)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", CELLS)
def test_a_number_of_threads_always_gives_its_bits(name, sizes, threads, way):
    compare_repeats(name, sizes, threads, 20)


def compare_repeats(name, sizes, threads, repeats):
    inputs, hidden, T, B = sizes
    layer, x = layer_of(name, inputs, hidden, dtype=torch.float64), torch.randn(T, B, inputs).double()
    threads(1)
    one = all_of(layer, x)
    for count in (1, 2, 4):
        threads(count)
        first = all_of(layer, x)
        for value, want in zip(first, one, strict=True):
            assert_same(value, want, tolerance=1e-11)
        for k in range(repeats):
            if k % 5 == 0:
                SESSIONS.clear()
            got = all_of(layer, x)
            assert all(map(torch.equal, got, first)), (count, k)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", ["gru", "lstm", "slstm"])
def test_it_gives_them_a_thousand_times(name, sizes, threads):
    compare_repeats(name, sizes, threads, 1000)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_gives_the_bits_of_one_thread(threads):
    layer, x = layer_of("lstm", 16, 32), torch.randn(20, 37, 16)
    want = all_of(layer, x)
    threads(2)
    all_of(layer, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os._exit(0 if all(map(torch.equal, all_of(layer, x), want)) else 1)
        finally:
            os._exit(2)
    assert exit_code(child) == 0


def exit_code(child, seconds=20):
    """How a forked process ended; it is killed if it hangs."""
    for _ in range(20 * seconds):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError("the forked process hangs")


@pytest.mark.parametrize("name", CELLS)
def test_a_sequence_alone_is_the_same_as_in_a_batch(name):
    for inputs, hidden, T, B in SIZES:
        layer, x = layer_of(name, inputs, hidden, dtype=torch.float64), torch.randn(T, B, inputs).double()
        whole = all_of(layer, x)
        count = len(layer.cell.states)
        for b in range(0, B, 3):
            alone = all_of(layer, x[:, b : b + 1])
            places = [*range(2 + count), *range(len(whole) - 1 - count, len(whole))]
            for k in places:  # output, states, the input's gradient; output and states without gradients
                assert_same(alone[k], whole[k][:, b : b + 1], tolerance=1e-12)


@pytest.mark.parametrize("name", CELLS)
def test_a_sequence_may_be_cut_anywhere(name):
    """With gradients that go through the cut, and without."""
    inputs, hidden, T, B = 16, 32, 64, 3
    layer, x = layer_of(name, inputs, hidden, dtype=torch.float64), torch.randn(T, B, inputs).double()
    states = None
    with torch.no_grad():
        whole, finals = layer(x)
        for t in range(T):
            y, states = layer.step(x[t], states)
            assert_same(y, whole[t])
        for got, want in zip(tuple_of(states), tuple_of(finals), strict=True):
            assert_same(got, want)
    wanted = torch.autograd.grad(layer(x)[0].square().sum(), list(layer.parameters()))
    for cut in range(1, T):
        with torch.set_grad_enabled(cut % 9 == 1):
            first, states = layer(x[:cut])
            second, states = layer(x[cut:], states)
        output = torch.cat([first, second])
        for got, want in zip((output, *tuple_of(states)), (whole, *tuple_of(finals)), strict=True):
            assert_same(got, want)
        if output.requires_grad:
            found = torch.autograd.grad(output.square().sum(), list(layer.parameters()))
            for got, want in zip(found, wanted, strict=True):
                assert_same(got, want, tolerance=1e-10)


def test_a_stepper_in_pieces_and_reset_is_the_whole_sequence():
    layer, x = cf.LSTM(16, 32, 2, dtype=torch.float64), torch.randn(64, 3, 16).double()
    with torch.no_grad():
        whole, _ = layer(x)
        for cut in range(0, 64, 5):
            stepper = layer.stepper(3)
            for t in range(cut):
                assert_same(stepper(x[t])[0], whole[t])
            stepper.reset([1])
            anew, _ = layer(x[cut:, 1:2])
            for t in range(cut, 64):
                y, _ = stepper(x[t])
                assert_same(y[[0, 2]], whole[t, [0, 2]])
                assert_same(y[1], anew[t - cut, 0])
