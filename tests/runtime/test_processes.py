"""Many threads at once, forks at any time, and workers of torch that run a layer: right results, no hang."""

import itertools
import os
import random
import threading
import time
import warnings

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import cellfuse as cf
from cellfuse.codegen.cpu import compile
from cellfuse.codegen.cpu.target import host
from cellfuse.runtime import kernel_call
from cellfuse.runtime.kernel_call import SESSIONS
from cellfuse.runtime.once import Once
from runtime.test_poison import all_of, layer_of
from runtime.test_repeat import exit_code

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
SHAPES = [(9, 5), (1, 1), (3, 13), (20, 2), (2, 37)]


def fresh_cell():
    """A cell that nobody has compiled, with the layer of the eager backend that says what is right."""

    @cf.cell(gates="abcd", states="h", source="none: a cell of the tests")
    def fresh(gate, h):
        a, b = torch.sigmoid(gate.a), torch.tanh(gate.b.x * gate.b.h)
        c = torch.tanh(gate.c.of(a * h)) * torch.exp(-(gate.d**2))
        return a * h + (1 - a) * torch.tanh(b + c)

    ours, eager = (fresh.layer(7, 13, backend=name, dtype=torch.float64) for name in ("cpu", "eager"))
    eager.load_state_dict(ours.state_dict())
    return ours, eager


def is_close(layer, eager, x):
    return all(itertools.starmap(torch.allclose, zip(all_of(layer, x), all_of(eager, x), strict=True)))


def all_at_once(count, work):
    """Run work(k) in so many threads, which begin together; the errors they raised."""
    start, errors = threading.Barrier(count), []

    def run(k):
        start.wait()
        try:
            work(k)
        except BaseException as error:  # noqa: BLE001 - handed on
            errors.append(error)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread hangs"
    return errors


def share_layers(threads, calls):
    layers = [layer_of("lstm", 16, 32), layer_of("gru_reset_before", 7, 13, bidirectional=True)]
    layers.append(layer_of("slstm", 7, 13, num_layers=2))
    inputs = [
        (layer, torch.randn(T, B, layer.input_size)) for layer in layers for T, B in SHAPES for _ in range(2)
    ]
    wanted = [all_of(layer, x) for layer, x in inputs]
    SESSIONS.clear()

    def work(k):
        chance = random.Random(k)
        for _ in range(calls):
            at = chance.randrange(len(inputs))
            assert all(map(torch.equal, all_of(*inputs[at]), wanted[at])), f"thread {k}, {inputs[at]}"

    assert all_at_once(threads, work) == []


@pytest.mark.parametrize("threads", [8, 32])
def test_threads_share_layers_of_mixed_shapes(threads):
    share_layers(threads, 320 // threads)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [8, 32])
def test_threads_share_layers_a_thousand_times(threads):
    share_layers(threads, 1000)


def test_threads_that_come_first_together_compile_once(monkeypatch):
    layer, eager = fresh_cell()
    x, loaded, load = torch.randn(4, 3, 7).double(), [], compile._load

    def counted(text, target, **options):
        loaded.append(text)
        return load(text, target, **options)

    compile.tiles(64, host(), False)  # of every kernel; a lock lets one thread compile them

    monkeypatch.setattr(compile, "_load", counted)
    monkeypatch.setattr(kernel_call, "_drivers", Once())
    found = {}
    assert all_at_once(32, lambda k: found.setdefault(k, all_of(layer, x))) == []
    assert len(found) == 32
    assert is_close(layer, eager, x)
    assert all(all(map(torch.equal, got, found[0])) for got in found.values())
    assert len(loaded) == len(set(loaded)) == 3  # the loops with gradients, those without, the driver


def forked(work):
    """A process in which work() is to be true."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    return child


def fork_while_compiling(monkeypatch, delays):
    """Fork so many seconds after another thread has begun to compile a cell and the driver."""
    monkeypatch.setenv("CELLFUSE_CACHE", "")
    x = torch.randn(4, 3, 7).double()

    def is_right(pairs):
        with torch.no_grad():
            return all(torch.allclose(ours(x)[0], eager(x)[0]) for ours, eager in pairs)

    for seconds in delays:
        monkeypatch.setattr(kernel_call, "_drivers", Once())
        pairs, found = [fresh_cell(), fresh_cell()], []
        thread = threading.Thread(target=lambda p=pairs, f=found: f.append(is_right(p[:1])))
        thread.start()
        time.sleep(seconds)
        assert exit_code(forked(lambda pairs=pairs: is_right(pairs))) == 0
        thread.join()
        assert found == [True]


@needs_fork
def test_a_process_may_fork_while_kernels_are_compiled(monkeypatch):
    fork_while_compiling(monkeypatch, (0.05, 0.9))


@needs_fork
@pytest.mark.slow
def test_a_process_may_fork_at_any_time_while_kernels_are_compiled(monkeypatch):
    fork_while_compiling(monkeypatch, [random.Random(0).uniform(0, 2) for _ in range(20)])


@needs_fork
def test_a_process_may_fork_while_other_threads_run_kernels():
    layer, x = layer_of("lstm", 16, 32), torch.randn(20, 5, 16)
    want, is_over = all_of(layer, x), threading.Event()

    def work():
        while not is_over.is_set():
            all_of(layer, x)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            assert exit_code(forked(lambda: all(map(torch.equal, all_of(layer, x), want)))) == 0
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


class Encoded(Dataset):
    """What a layer makes of random sequences, in whatever process asks."""

    def __init__(self, layer):
        self.layer = layer

    def __len__(self):
        return 24

    def __getitem__(self, k):
        x = torch.randn(9, 2, 16, generator=torch.Generator().manual_seed(k))
        return torch.cat([value.detach().flatten() for value in all_of(self.layer, x)])


@pytest.mark.parametrize(
    "way", [pytest.param("fork", marks=needs_fork), pytest.param("spawn", marks=pytest.mark.slow)]
)
def test_workers_of_a_loader_run_a_layer(way):
    data = Encoded(layer_of("lstm", 16, 32))
    want = [data[k] for k in range(len(data))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more workers than processors; a fork with threads
        loader = DataLoader(data, num_workers=4, multiprocessing_context=way, timeout=120)
        found = list(loader)
    for got, value in zip(found, want, strict=True):
        assert torch.equal(got[0], value)


def run_in_a_spawned_process(rank, layer, x, want):
    assert all(map(torch.equal, all_of(layer, x), want))


@pytest.mark.slow
def test_spawned_processes_run_a_layer():
    layer, x = layer_of("lstm", 16, 32), torch.randn(9, 2, 16)
    want = [value.detach() for value in all_of(layer, x)]
    torch.multiprocessing.spawn(run_in_a_spawned_process, (layer, x, want), nprocs=2)
