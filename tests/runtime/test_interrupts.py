"""Ctrl-C while a kernel runs or is compiled: heard within 200 ms, and the next call is right."""

import hashlib
import os
import random
import signal
import sys
import threading
import time

import pytest
import torch

import cellfuse as cf
from cellfuse.codegen.cpu import compile
from cellfuse.runtime.kernel_call import SESSIONS
from cellfuse.runtime.once import Once

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to itself")

SOURCE = os.path.dirname(cf.__file__)
SOON = 0.2  # seconds of this process's own time, so that a busy machine does not matter


def interrupted_after(seconds, work):
    """How long `work` goes on after Ctrl-C; None if it was over before."""
    sent = []

    def press():
        sent.append(time.process_time())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(seconds, press)
    timer.start()
    try:
        work()
        timer.cancel()
        timer.join()
        for _ in range(200 * len(sent)):  # it was too late for the work, and is on its way
            time.sleep(0.01)
        assert not sent, "Ctrl-C was swallowed"
    except KeyboardInterrupt:
        return time.process_time() - sent[0]
    return None


def is_heard(measure):
    """Whether one of three latencies, none of them None, is short: a busy machine adds to some."""
    return any(measure() < SOON for _ in range(3))


def all_of(layer, x):
    output, state = layer(x)
    state = state if isinstance(state, torch.Tensor) else state[0]
    return [output, *torch.autograd.grad(output.sum() + state.sum(), list(layer.parameters()))]


def test_the_loops_of_a_long_sequence_are_interrupted():
    torch.manual_seed(0)
    layer, x = cf.GRU(16, 256, backend="cpu"), torch.randn(40_000, 4, 16)
    short = x[:50]
    want = all_of(layer, short)
    start = time.perf_counter()
    loss = layer(x)[0].sum()
    forward = time.perf_counter() - start
    assert forward > 2 * SOON, "too short to tell"
    seen = [interrupted_after(forward * part, lambda: layer(x)) for part in (0.1, 0.4)]
    backward = [interrupted_after(forward * part, loss.backward) for part in (0.1,)]
    for latency in (*seen, *backward):
        assert latency is not None
        assert latency < SOON
    for got, value in zip(all_of(layer, short), want, strict=True):
        assert torch.equal(got, value)


def test_long_input_products_are_interrupted():
    layer, x = cf.GRU(1024, 256, backend="cpu"), torch.randn(1000, 64, 1024)
    latency = interrupted_after(0.1, lambda: [layer(x) for _ in range(3)])
    assert latency is not None
    assert latency < SOON


def test_two_threads_are_interrupted_and_their_memory_stays_theirs(monkeypatch):
    monkeypatch.setattr("cellfuse.runtime.fused._WORTH", 1)
    layer, x = cf.GRU(16, 256, backend="cpu"), torch.randn(8_000, 16, 16)
    want = all_of(layer, x[:50])
    torch.set_num_threads(2)
    try:
        for seconds in (0.1, 0.2, 0.3):
            work = lambda: [layer(x) for _ in range(10)]  # noqa: E731
            assert is_heard(lambda s=seconds, w=work: interrupted_after(s, w))
        got = all_of(layer, x[:50])
    finally:
        torch.set_num_threads(1)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)  # torch.mm shares its sums


def test_pieces_of_a_loop_give_the_same_bits(monkeypatch, way):
    monkeypatch.setattr("cellfuse.runtime.fused.CHUNK", 1)
    monkeypatch.setattr("cellfuse.runtime.fused.ROWS", 10)
    for name in ("gru", "layer_norm_lstm", "slstm"):
        SESSIONS.clear()
        layer, x = cf.cells.find(name).layer(3, 20, bidirectional=True, backend="cpu"), torch.randn(23, 5, 3)
        output, _ = layer(x)
        layer.__dict__.pop("_quick", None)
        want = [output, *torch.autograd.grad(output.sum(), list(layer.parameters()))]
        with monkeypatch.context() as patch:
            SESSIONS.clear()
            patch.setattr("cellfuse.runtime.kernel_call._QUICK", 1)
            patch.setattr("cellfuse.runtime.kernel_call.UNHEARD", 1e-9)
            output, _ = layer(x)
            got = [output, *torch.autograd.grad(output.sum(), list(layer.parameters()))]
        assert all(map(torch.equal, got, want))


@pytest.fixture(autouse=True)
def listening():
    """Ctrl-C is heard, also where the tests run in the background, for which shells turn it off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def compile_slowly(monkeypatch):
    """Every kernel takes half a second more, without Python."""
    object_code = compile.object_code

    def slowly(*given, **options):
        hashlib.pbkdf2_hmac("sha256", b"", b"", 750_000)
        return object_code(*given, **options)

    monkeypatch.setattr(compile, "object_code", slowly)


def test_compiling_is_interrupted_and_goes_on(monkeypatch):
    monkeypatch.setenv("CELLFUSE_CACHE", "")
    x = torch.randn(3, 2, 5)

    @cf.cell(gates="abcdef", states="h", source="none: a cell of the tests")
    def heavy(gate, h):
        a, b, c = torch.sigmoid(gate.a), torch.tanh(gate.b), torch.sigmoid(gate.c.x * gate.c.h)
        d = torch.tanh(gate.d.of(a * h)) * torch.exp(-(gate.e**2))
        f = torch.tanh(gate.f.of(b * d + c))
        return a * h + (1 - a) * f

    def latency():
        return interrupted_after(0.15, lambda: all_of(heavy.layer(5, next(sizes), backend="cpu"), x))

    compile_slowly(monkeypatch)
    sizes = iter((37, 38, 40))
    assert is_heard(latency)
    layer = heavy.layer(5, 40, backend="cpu")
    eager = heavy.layer(5, 40, backend="eager")
    eager.load_state_dict(layer.state_dict())
    for got, want in zip(all_of(layer, x), all_of(eager, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_compiling_the_driver_is_interrupted(monkeypatch):
    layer, x = cf.GRU(7, 13, bidirectional=True, backend="cpu"), torch.randn(3, 2, 7)
    want = all_of(layer, x)
    monkeypatch.setenv("CELLFUSE_CACHE", "")
    compile_slowly(monkeypatch)

    def latency():
        monkeypatch.setattr("cellfuse.runtime.kernel_call._drivers", Once())
        SESSIONS.clear()
        return interrupted_after(0.1, lambda: all_of(layer, x))

    assert is_heard(latency)
    assert all(map(torch.equal, all_of(layer, x), want))


def test_who_waits_for_native_code_that_makes_something_is_interrupted():
    once, keys = Once(), iter(range(3))

    def make():
        return hashlib.pbkdf2_hmac("sha256", b"", b"", 1_500_000)  # a second without Python

    start = time.perf_counter()
    assert is_heard(lambda: interrupted_after(0.1, lambda: once.get(next(keys), make)))
    assert once.get(0, lambda: b"made again") == make()
    assert time.perf_counter() - start > 2 * SOON, "too short to tell"


def test_what_is_made_once_is_made_once_and_again_after_an_error():
    made, once = [], Once(3)

    def make(key):
        time.sleep(0.05)
        made.append(key)
        if len(made) == 1:
            raise MemoryError
        return key

    def want(found):
        try:
            found.append(once.get("a", lambda: make("a")))
        except MemoryError as error:
            found.append(error)

    for wanted in (MemoryError, str, str):
        found = []
        threads = [threading.Thread(target=want, args=(found,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [type(value) for value in found] == [wanted] * 8
    assert made == ["a", "a"]
    for key in range(10):
        once.get(key, lambda key=key: key + 1)
    assert list(once._made) == [7, 8, 9]


def interrupt_at_random(layer, x, count):
    """Latencies of interrupts at random times of a forward and a backward call; the next one is right."""
    chance, found, short = random.Random(0), {"forward": [], "backward": []}, x[:50]
    want = all_of(layer, short)
    start = time.perf_counter()
    loss = layer(x)[0].sum()
    seconds = {"forward": time.perf_counter() - start}
    start = time.perf_counter()
    loss.backward(retain_graph=True)
    seconds["backward"] = time.perf_counter() - start
    work = {"forward": lambda: layer(x), "backward": lambda: loss.backward(retain_graph=True)}
    for _ in range(count):
        for way, run in work.items():
            found[way].append(interrupted_after(chance.uniform(0.0, 0.8 * seconds[way]), run))
            assert all(map(torch.equal, all_of(layer, short), want))
    return [latency for each in found.values() for latency in each if latency is not None]


@pytest.mark.parametrize(
    ("name", "count"), [("GRU", 2), pytest.param("LSTM", 20, marks=pytest.mark.slow), ("LSTM", 2)]
)
def test_an_interrupt_at_any_time_of_a_long_call(name, count):
    layer, x = getattr(cf, name)(16, 256, backend="cpu"), torch.randn(12_000, 4, 16)
    latencies = interrupt_at_random(layer, x, count)
    assert len(latencies) > count
    assert sorted(latencies)[-2] < SOON  # one may meet a busy machine


def interrupted_at(line, work):
    """Whether work came as far as this line of ours, counted from its first one, where Ctrl-C was pressed.

    Not at the end of a `with`, before its lock is opened: there Python hears no signal, but traces a line.
    """
    seen = 0

    def trace(frame, event, _):
        nonlocal seen
        if not frame.f_code.co_filename.startswith(SOURCE):
            return None
        if event == "line":
            seen += 1
            if seen >= line and not isinstance(frame.f_locals.get("self"), type(SESSIONS)):
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_an_interrupt_at_any_line_does_no_harm(stride):
    """Also while what is kept for the next call is made and changed: the next call is right."""
    lstm, gru = cf.LSTM(16, 32, backend="cpu"), cf.GRU(7, 13, bidirectional=True, backend="cpu")
    long, odd, x = torch.randn(5, 3, 16), torch.randn(5, 3, 7), torch.randn(3, 16)

    def step():
        with torch.no_grad():
            y, states = lstm.step(x)
        return [y, *states]

    def infer():
        with torch.no_grad():
            return [lstm(long)[0]]

    def forget():
        SESSIONS.clear()
        for layer in (lstm, gru):
            layer.__dict__.pop("_quick", None)

    for call in (lambda: all_of(lstm, long), lambda: all_of(gru, odd), step, infer):
        for prepare in (forget, call):
            want, is_there, line = call(), True, 1
            while is_there:
                prepare()
                is_there = interrupted_at(line, call)
                assert all(map(torch.equal, call(), want)), line
                line += 1 if call is step else stride
            assert line > 30
