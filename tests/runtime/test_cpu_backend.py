"""The cpu backend through the layer: what it refuses and why, derivatives of every kind, torch.compile."""

import copy
import gc
import math
import os
import subprocess
import sys
import threading
import time
import warnings

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import cellfuse as cf
from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.codegen.cpu.target import host
from cellfuse.runtime import choice, cpu, library
from cellfuse.runtime.fused import Fused
from cellfuse.runtime.kernel_call import SESSIONS, _drivers
from cellfuse.runtime.private import OpenMP
from compare import OPTIONS, assert_as_accurate, assert_same

THREE = ["RNN", "GRU", "LSTM"]


def pair(name, *sizes, **options):
    """The same layer on the cpu and on the eager backend, in float64."""
    options = {"dtype": torch.float64} | OPTIONS.get(name, {}) | options
    make = cf.cells.find(name).layer
    ours, eager = make(*sizes, backend="cpu", **options), make(*sizes, backend="eager", **options)
    eager.load_state_dict(ours.state_dict())
    return ours, eager


def results(layer, x, seed=0):
    """Output, states and the gradients of the input and of every parameter."""
    output, finals = layer(x)
    output = output.data if isinstance(output, torch.nn.utils.rnn.PackedSequence) else output
    finals = finals if isinstance(finals, tuple) else (finals,)
    generator = torch.Generator().manual_seed(seed)
    loss = sum(
        (v * torch.randn(v.shape, dtype=v.dtype, generator=generator)).sum() for v in (output, *finals)
    )
    return [output, *finals, *torch.autograd.grad(loss, list(layer.parameters()))]


@pytest.mark.parametrize("name", ["lstm", "mgu", "slstm", "layer_norm_lstm", "projected_lstm", "mingru"])
def test_packed_sequences_in_both_directions(name):
    ours, eager = pair(name, 3, 6, num_layers=2, bidirectional=True)
    x = torch.randn(4, 7, 3, dtype=torch.float64)
    for lengths in ([7, 7, 7, 7], [5, 7, 1, 3]):
        packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
        for got, want in zip(results(ours, packed), results(eager, packed), strict=True):
            assert_same(got, want, tolerance=1e-11)
    with torch.no_grad():
        assert_same(ours(packed)[0].data, eager(packed)[0].data)


@pytest.mark.usefixtures("way")
def test_gradients_of_weights_sum_over_many_rows():
    """More of them than one run of additions of the outer products takes."""
    ours, eager = pair("gru", 5, 10)
    x = torch.randn(60, 7, 5, dtype=torch.float64)
    for got, want in zip(results(ours, x), results(eager, x), strict=True):
        assert_same(got, want, tolerance=1e-10)


@pytest.mark.usefixtures("way")
def test_long_sequences_go_chunk_by_chunk(monkeypatch):
    monkeypatch.setattr("cellfuse.runtime.fused.CHUNK", 1 << 10)
    monkeypatch.setattr("cellfuse.runtime.fused.ROWS", 10)
    SESSIONS.clear()
    for name in ("gru", "slstm", "gru_reset_before"):
        ours, eager = pair(name, 3, 10, bidirectional=True)
        x = torch.randn(23, 3, 3, dtype=torch.float64)
        for got, want in zip(results(ours, x), results(eager, x), strict=True):
            assert_same(got, want, tolerance=1e-11)
        with torch.no_grad():
            assert_same(ours(x)[0], eager(x)[0])


@pytest.mark.parametrize("name", THREE)
def test_error_against_float64_is_at_most_twice_torchs(name):
    torch.manual_seed(1)
    theirs = getattr(torch.nn, name)(48, 96)
    ours = getattr(cf, name)(48, 96, backend="cpu")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(60, 8, 48) * 2
    low, base = results(ours, x), results(theirs, x)
    exact = results(theirs.double(), x.double())
    for k, (got, want, baseline) in enumerate(zip(low, exact, base, strict=True)):
        scale = want.abs().max()
        assert_as_accurate(got / scale, want / scale, baseline / scale, what=f"value {k}")


@pytest.mark.usefixtures("way")
def test_backward_may_run_twice_and_gradients_have_memory_of_their_own():
    layer = cf.RNN(3, 16, backend="cpu")
    x = torch.randn(5, 2, 3)
    loss = layer(x)[0].sum()
    first = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(layer.parameters()))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    pointers = {value.untyped_storage().data_ptr() for value in first}
    assert len(pointers) == len(first)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}])
def test_an_output_may_be_changed_like_torchs(options):
    layer, x = cf.LSTM(3, 16, backend="cpu", **options), torch.randn(5, 2, 3)
    want = torch.autograd.grad(layer(x)[0].sum(), layer.weight_hh_l0)
    for _ in range(2):
        output, _ = layer(x)
        loss = output.sum()
        output.detach().add_(1)
        assert torch.equal(torch.autograd.grad(loss, layer.weight_hh_l0)[0], want[0])


def test_a_change_of_what_is_needed_is_noticed():
    layer = cf.LSTM(3, 16, backend="cpu", recompute=True)
    output, _ = layer(torch.randn(5, 2, 3))
    loss = output.sum()
    output.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", THREE)
def test_batched_gradients_and_gradients_of_gradients(name):
    layer = getattr(cf, name)(2, 3, dtype=torch.float64, backend="cpu")
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    output = layer(x)[0]
    basis = torch.eye(output.numel(), dtype=torch.float64).view(-1, *output.shape)
    (rows,) = torch.autograd.grad(output, x, basis, is_grads_batched=True, retain_graph=True)
    for vector, row in zip(basis, rows, strict=True):
        assert_same(row, torch.autograd.grad(output, x, vector, retain_graph=True)[0])
    third = torch.autograd.grad(output.sum(), x, create_graph=True)[0]
    assert torch.autograd.grad(third.pow(2).sum(), x)[0].abs().sum() > 0


def reason(layer, *args):
    return layer.why_not(*args)["cpu"]


def test_what_it_refuses_is_said_and_never_swapped():
    layer, x = cf.GRU(3, 4, backend="cpu"), torch.randn(9, 2, 3)
    assert reason(layer, x) == ""
    with torch.autograd.forward_ad.dual_level():
        assert "forward-mode" in reason(layer, x)
    meta = cf.GRU(3, 4, device="meta")
    assert "on meta" in reason(meta, x.to("meta"))
    for auto in (cf.GRU(3, 4), cf.cells.mgu.layer(3, 4)):
        torch.func.grad(lambda v, auto=auto: auto(v)[0].sum())(x)


def test_an_empty_sequence_has_nothing_to_run():
    layer = cf.LSTM(3, 4, backend="cpu")
    for shape in ((0, 2, 3), (4, 0, 3)):
        output, (h, c) = layer(torch.zeros(shape))
        assert output.shape == (*shape[:2], 4)
        assert h.shape == c.shape == (1, shape[1], 4)


def test_threads_may_share_a_layer():
    layer, x = cf.GRU(8, 32, backend="cpu"), torch.randn(20, 4, 8)
    with torch.no_grad():
        want = layer(x)[0]
    found = []

    def work():
        with torch.no_grad():
            found.extend(torch.equal(layer(x)[0], want) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert all(found)


def test_strided_input_states_and_gradients():
    ours, eager = pair("lstm", 3, 5, num_layers=1)
    x = torch.randn(3, 2, 9, dtype=torch.float64).permute(2, 1, 0)[::2]
    states = tuple(torch.randn(2, 1, 5, dtype=torch.float64).transpose(0, 1) for _ in range(2))
    for got, want in zip(ours(x, states)[1], eager(x, states)[1], strict=True):
        assert_same(got, want)
    grad = torch.randn(5, 2, 5, dtype=torch.float64).expand(5, 2, 5)[:, :1].expand(5, 2, 5)
    got, want = (
        torch.autograd.grad(m(x)[0], list(m.parameters()), grad.as_strided((5, 2, 5), (5, 0, 1)))
        for m in (ours, eager)
    )
    for a, b in zip(got, want, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before", "projected_lstm"])
def test_compiled_it_is_one_node_for_every_length(name):
    ours, eager = pair(name, 3, 4, num_layers=2, bidirectional=True, **OPTIONS.get(name, {}))
    graphs = []
    torch.compiler.reset()

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(ours, backend=backend, fullgraph=True, dynamic=True)
    differentiated = torch.compile(ours, backend="aot_eager", fullgraph=True, dynamic=True)
    for T, B in [(5, 2), (9, 3), (4, 6)]:
        x = torch.randn(T, B, 3, dtype=torch.float64)
        for got, want in zip(results(differentiated, x), results(eager, x), strict=True):
            assert_same(got, want)
        with torch.no_grad():
            compiled(x)
    nodes = [node.target for node in graphs[0].graph.nodes if node.target is library.forward]
    assert len(nodes) == 4
    assert len(graphs) == 1


def test_a_sequence_of_one_step_and_one_unit():
    for name in ("lstm", "gru"):
        ours, eager = pair(name, 1, 1, bidirectional=True)
        x = torch.randn(1, 1, 1, dtype=torch.float64)
        for got, want in zip(results(ours, x), results(eager, x), strict=True):
            assert_same(got, want)
        with torch.no_grad():
            for got, want in zip(ours(x)[1], eager(x)[1], strict=True):
                assert_same(got, want)


def test_sequences_that_end_early_do_not_touch_each_other():
    ours, eager = pair("gru", 3, 4)
    packed = pack_sequence([torch.randn(n, 3, dtype=torch.float64) for n in (6, 2, 1)])
    for got, want in zip(results(ours, packed), results(eager, packed), strict=True):
        assert_same(got, want)


def test_the_backend_is_in_the_table():
    assert choice.BACKENDS["cpu"] is cpu
    assert next(iter(choice.BACKENDS)) == "cpu"


@pytest.fixture
def three_threads(threads):
    """Three threads for anything."""
    threads(3)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(
    "name", ["gru_reset_before", "indrnn", "lstm", "peephole_lstm", "projected_lstm", "slstm"]
)
def test_threads_share_the_units_of_few_sequences(name, count, threads):
    ours, eager = pair(name, 3, 72)
    for lengths in ([9], [9, 9, 4, 1]):
        x = pack_padded_sequence(torch.randn(9, len(lengths), 3, dtype=torch.float64), lengths)
        given = x if len(lengths) > 1 else pad_packed_sequence(x)[0]
        want, first = results(eager, given), []
        threads(count)
        for _ in range(10):
            got = results(ours, given)
            for value, other in zip(got, want, strict=True):
                assert_same(value, other, tolerance=1e-10)
            assert all(map(torch.equal, got, first or got))
            first = first or got
        threads(1)
        assert all(map(torch.equal, results(ours, given)[:2], first[:2]))  # the same sums


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("sizes", [(3, 10, True), (16, 32, False)])
@pytest.mark.parametrize("batch", [37, 3])
@pytest.mark.parametrize("name", ["gru", "layer_norm_lstm", "slstm", "peephole_lstm"])
def test_threads_share_the_work(name, batch, sizes, three_threads):
    ours, eager = pair(name, *sizes[:2], num_layers=1, bidirectional=sizes[2])
    x = torch.randn(9, batch, sizes[0], dtype=torch.float64)
    for _ in range(2):
        got = results(ours, x)
        for value, want in zip(got, results(eager, x), strict=True):
            assert_same(value, want, tolerance=1e-10)
    with torch.no_grad():
        assert_same(ours(x)[0], got[0])
        assert_same(ours(x)[0], got[0])


@pytest.mark.parametrize("count", [2, 3, 4, 5])
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", ["gru", "layer_norm_lstm", "slstm"])
def test_both_directions_run_side_by_side(name, count, threads, monkeypatch):
    threads(count)
    ours, eager = pair(name, 3, 10, num_layers=2, bidirectional=True)
    entered, run = [], OpenMP.run

    def counted(self, function, call, number):
        entered.append((function, number))
        run(self, function, call, number)

    monkeypatch.setattr(OpenMP, "run", counted)
    ours(torch.randn(1, 1, 3, dtype=torch.float64))
    both = set(_drivers.get((64, host()), None).enter_both.values())
    for batch, is_packed in ((40, False), (3, False), (5, True)):
        x = torch.randn(9, batch, 3, dtype=torch.float64)
        given = pack_padded_sequence(x, [9, 9, 7, 3, 1]) if is_packed else x
        entered.clear()
        want = results(eager, given)
        for seconds in (None, 1e-9, 1e9):  # whole; in pieces; in pieces, then whole
            with monkeypatch.context() as patch:
                if seconds:
                    SESSIONS.clear()
                    patch.setattr("cellfuse.runtime.kernel_call._QUICK", 1)
                    patch.setattr("cellfuse.runtime.kernel_call.UNHEARD", seconds)
                for _ in range(2):
                    for value, other in zip(results(ours, given), want, strict=True):
                        scale = max(1.0, other.abs().max().item())  # layer norm's gradients are large
                        assert_same(value / scale, other / scale, tolerance=1e-11)
        assert {function for function, _ in entered} == both
        assert {number for _, number in entered} == {2 * (count // 2)}


FEWER = """
import torch, cellfuse as cf
from cellfuse.runtime import fused
fused._WORTH = 1
torch.manual_seed(0)
for threads in (4, 8):
    torch.set_num_threads(threads)
    for directions in (False, True):
        ours = cf.GRU(3, 10, bidirectional=directions, dtype=torch.float64, backend="cpu")
        eager = cf.GRU(3, 10, bidirectional=directions, dtype=torch.float64, backend="eager")
        eager.load_state_dict(ours.state_dict())
        x = torch.randn(9, 70, 3, dtype=torch.float64)
        made = [(m(x)[0], *torch.autograd.grad(m(x)[0].sum(), list(m.parameters()))) for m in (ours, eager)]
        for got, want in zip(*made, strict=True):
            torch.testing.assert_close(got, want)
"""


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_fewer_threads_than_asked_for_do_all_the_work(limit):
    environment = os.environ | {"OMP_THREAD_LIMIT": str(limit)}
    done = subprocess.run([sys.executable, "-c", FEWER], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_without_openmp_there_is_one_thread(three_threads, monkeypatch):
    monkeypatch.setattr("cellfuse.runtime.kernel_call.openmp", lambda: None)
    ours, eager = pair("lstm", 3, 10)
    x = torch.randn(9, 37, 3, dtype=torch.float64)
    for value, want in zip(results(ours, x), results(eager, x), strict=True):
        assert_same(value, want, tolerance=1e-10)


def test_a_forked_process_does_not_wait_for_its_parents_threads(three_threads):
    layer, x = cf.GRU(16, 32, backend="cpu"), torch.randn(9, 37, 16)
    want = layer(x)[0].detach()
    torch.randn(400, 400) @ torch.randn(400, 400)  # torch's threads run, too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        is_same = torch.allclose(layer(x)[0], want) and torch.allclose(layer(x.clone())[0], want)
        os._exit(0 if is_same else 1)
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.1)
    os.kill(child, 9)
    raise AssertionError("the forked process hangs")


def test_fewer_threads_than_asked_for_do_the_same(three_threads, monkeypatch):
    run = OpenMP.run
    monkeypatch.setattr(OpenMP, "run", lambda self, function, call, threads: run(self, function, call, 2))
    for sizes in ((3, 10), (16, 32)):
        ours, eager = pair("lstm", *sizes)
        x = torch.randn(9, 37, sizes[0], dtype=torch.float64)
        for value, want in zip(results(ours, x), results(eager, x), strict=True):
            assert_same(value, want, tolerance=1e-10)


def sizes_of(layer):
    return Sizes(layer.hidden_size, layer.proj_size, layer.num_heads)


def test_auto_leaves_few_time_steps_of_many_units_to_torch():
    def chosen(layer, *shape):
        x = torch.randn(shape)
        return choice.choose(layer._case(x, layer.initial_states(shape[1], x)))

    for layer in (cf.RNN(16, 257, 2), cf.GRU(16, 300), cf.RNN(15, 512, bidirectional=True)):
        assert [chosen(layer, T, 1, layer.input_size) for T in (1, 2, 3)] == ["aten", "aten", "cpu"]
        assert [chosen(layer, T, 3, layer.input_size) for T in (1, 2)] == ["aten", "cpu"]
    for layer in (cf.RNN(15, 30), cf.GRU(15, 256), cf.LSTM(15, 300), cf.cells.mgu.layer(15, 300)):
        assert chosen(layer, 1, 1, 15) == "cpu"


@pytest.fixture
def new_sessions(monkeypatch):
    """The loops for which memory was made."""
    made, new_session = [], Fused.new_session

    def counted(self, loop, *given, **options):
        made.append(loop)
        return new_session(self, loop, *given, **options)

    monkeypatch.setattr(Fused, "new_session", counted)
    SESSIONS.clear()
    return made


def train(layer, *shape):
    layer(torch.randn(*shape, layer.input_size))[0].sum().backward()


def test_equal_layers_and_calls_share_their_memory(new_sessions):
    layers = [cf.GRU(8, 8, num_layers=3, bidirectional=True, backend="cpu") for _ in range(20)]
    train(layers[0], 5, 2)
    count = len(new_sessions)
    for layer in layers:
        train(layer, 5, 2)
    # A layer's first input is narrower than the others'; each direction has memory of its own.
    assert count == len(new_sessions) == 8
    for T in (5, 6, 5, 6):
        train(layers[0], T, 2)
    assert len(new_sessions) == 16
    kept = len(SESSIONS.kept())
    del layers, layer
    gc.collect()
    assert len(SESSIONS.kept()) == kept


def test_a_layer_remembers_the_last_sizes(new_sessions):
    layer = cf.GRU(3, 5, backend="cpu")
    with torch.no_grad():
        for T in range(10, 80):
            layer(torch.randn(T, 2, 3))
        assert [key[1][0] for key in layer._quick.sizes] == list(range(16, 80))
        for _ in range(3):
            layer(torch.randn(16, 2, 3))
    assert list(layer._quick.sizes)[-1][1][0] == 16
    assert len(new_sessions) == 70


@pytest.mark.parametrize("is_grad", [True, False])
def test_strides_do_not_make_a_call_slow(is_grad, monkeypatch):
    monkeypatch.setattr(choice, "run", None)  # the general way
    layer, eager = cf.LSTM(6, 5, 2, bidirectional=True), cf.LSTM(6, 5, 2, bidirectional=True, backend="eager")
    eager.load_state_dict(layer.state_dict())
    x, h = torch.randn(4, 3, 12)[..., ::2], torch.randn(4, 1, 5, requires_grad=is_grad)
    made = []
    with torch.set_grad_enabled(is_grad):
        made.append(layer(x, (h.expand(-1, 3, -1), h.expand(-1, 3, -1)))[0])
        monkeypatch.undo()
        made.append(eager(x, (h.expand(-1, 3, -1), h.expand(-1, 3, -1)))[0])
    torch.testing.assert_close(*made)
    if is_grad:
        torch.testing.assert_close(*(torch.autograd.grad(output.sum(), h)[0] for output in made))


@pytest.mark.usefixtures("way")
def test_the_sign_of_a_negated_gradient_is_seen():
    layer, x = cf.GRU(5, 8, backend="cpu"), torch.randn(4, 3, 5)
    output = layer(x)[0]
    negated = torch._neg_view(torch.ones_like(output))
    (got,) = torch.autograd.grad(output, layer.weight_hh_l0, negated, retain_graph=True)
    (want,) = torch.autograd.grad(output, layer.weight_hh_l0, -torch.ones_like(output))
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    "options", [{}, {"batch_first": True}, {"num_layers": 2, "bidirectional": True, "dropout": 0.5}]
)
@pytest.mark.parametrize("name", THREE)
def test_torchs_operator_is_called_the_quick_way_and_gives_torchs_bits(name, options, monkeypatch):
    ours, theirs = (
        getattr(cf, name)(5, 7, backend="aten", **options),
        getattr(torch.nn, name)(5, 7, **options),
    )
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 5)
    for is_trained in (True, False):
        ours.train(is_trained)(x)
    monkeypatch.setattr(choice, "run", None)  # the general way
    for is_trained in (True, False):
        for layer in (ours, theirs):
            layer.train(is_trained)
        for hx in (None, ours.initial_states(2 if options.get("batch_first") else 3, x)):
            hx = hx[0] if hx is not None and len(hx) == 1 else hx
            made = []
            for layer in (ours, theirs):
                torch.manual_seed(0)
                output, states = layer(x, hx)
                states = states if isinstance(states, tuple) else (states,)
                made.append([output, *states, *torch.autograd.grad(output.sum(), list(layer.parameters()))])
            for got, want in zip(*made, strict=True):
                assert torch.equal(got, want)


def test_auto_leaves_the_training_of_large_lstms_to_torch():
    layer, x = cf.LSTM(8, 1024), torch.randn(3, 2, 8)
    case = layer._case(x, layer.initial_states(2, x))
    assert choice.choose(case) == "aten"
    with torch.no_grad():
        assert choice.choose(case) == "cpu"


def test_a_default_device_does_not_reach_the_kernels_tables():
    layer, x = cf.GRU(3, 4, backend="cpu"), torch.randn(11, 3, 3)
    with torch.device("meta"):
        got = layer(x)[0]
    assert torch.equal(got, layer(x)[0])


def test_what_is_not_plain_memory_is_refused():
    layer = cf.GRU(3, 4)
    negated = torch._neg_view(torch.randn(5, 2, 3))
    assert "negated view" in reason(layer, negated)
    torch.testing.assert_close(layer(negated)[0], layer(negated.clone())[0])
    subclass = torch.randn(5, 2, 3).as_subclass(type("Mine", (torch.Tensor,), {}))
    assert "is a Mine" in reason(layer, subclass)


def test_a_traced_layer_depends_on_its_input():
    layer = cf.GRU(3, 4).requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda x: layer(x)[0], torch.randn(5, 2, 3), check_trace=False)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(traced(x), layer(x)[0])


def test_the_quick_way_sees_what_has_changed_since_its_last_call():
    layer, x = cf.LSTM(16, 32), torch.randn(5, 3, 16)
    with torch.no_grad():
        before = layer(x)[0]
        layer.weight_hh_l0 = torch.nn.Parameter(torch.zeros_like(layer.weight_hh_l0))
        after = layer(x)[0]
        assert not torch.equal(before[1:], after[1:])
        assert_same(after, cf.LSTM.forward(layer, x.double().float())[0])
        layer.backend = "aten"
        assert choice.choose(layer._case(x, layer.initial_states(3, x)), layer.backend) == "aten"
        torch.testing.assert_close(layer(x)[0], after)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("options", [{}, {"nonlinearity": "relu"}], ids=["tanh", "relu"])
def test_gradients_at_odd_numbers_are_torchs(options, number):
    layer = cf.RNN(4, 19, dtype=torch.float64, backend="cpu", **options)
    theirs = torch.nn.RNN(4, 19, dtype=torch.float64, **options)
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    x[2, 1] = number
    found = []
    for each in (layer, theirs):
        given = x.clone().requires_grad_()
        output, _ = each(given)
        found.append([output, *torch.autograd.grad(output.sum(), [given, *each.parameters()])])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "number", "dtype"),
    [
        ("ran", -3e38, torch.float32),
        ("ran", -1e300, torch.float64),
        ("minlstm", 60.0, torch.float32),
        ("minlstm", 90.0, torch.float32),
        ("minlstm", 1000.0, torch.float64),
        ("indrnn", math.nan, torch.float64),
        ("slstm", math.nan, torch.float64),
    ],
)
def test_products_and_ratios_of_tiny_gates_are_those_of_double_precision(name, number, dtype):
    torch.manual_seed(0)
    layer = cf.Layer(getattr(cf.cells, name), 4, 19, backend="cpu", dtype=dtype)
    exact = copy.deepcopy(layer).double()
    exact.backend = "eager"
    x = torch.randn(6, 5, 4, dtype=dtype)
    x[2, 1] = number
    got, want = layer(x)[0], exact(x.double())[0]
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5, equal_nan=True)


CHANGES = {
    "laid out anew": lambda weight: weight.data.t().contiguous().t(),
    "negated": lambda weight: torch._neg_view(weight.data),
    "moved": lambda weight: weight.data.flip(0),
    "changed": lambda weight: weight.data.mul_(2),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
@pytest.mark.parametrize("is_step", [False, True], ids=["sequence", "step"])
def test_the_quick_ways_see_what_has_become_of_a_weight(change, is_step):
    layer, eager = cf.GRU(16, 32, backend="cpu"), cf.GRU(16, 32, backend="eager")
    eager.load_state_dict(layer.state_dict())
    x = torch.randn(3, 16) if is_step else torch.randn(5, 3, 16)
    run = (lambda each: each.step(x)[0]) if is_step else (lambda each: each(x)[0])
    with torch.no_grad():
        torch.testing.assert_close(run(layer), run(eager))
        for each in (layer, eager):
            each.weight_hh_l0.data = change(each.weight_hh_l0)
        if layer.weight_hh_l0.is_neg():
            with pytest.raises(cf.errors.BackendError, match="not plain memory"):
                run(layer)
        else:
            torch.testing.assert_close(run(layer), run(eager))


def test_the_quick_ways_see_that_a_weight_has_become_float64():
    layer, x = cf.GRU(16, 32, backend="cpu"), torch.randn(3, 16)
    with torch.no_grad():
        layer.step(x)
        layer(x.unsqueeze(0))
        layer.weight_hh_l0.data = layer.weight_hh_l0.data.double()
        for run in (lambda: layer.step(x), lambda: layer(x.unsqueeze(0))):
            with pytest.raises((cf.errors.BackendError, RuntimeError), match=r"float64|same dtype"):
                run()


def test_the_quick_ways_see_what_requires_a_gradient():
    layer, x = cf.GRU(16, 32, backend="cpu").requires_grad_(False), torch.randn(3, 16)
    state = torch.zeros(1, 3, 32)
    for _ in range(2):
        assert not layer.step(x, state)[0].requires_grad
        assert not layer(x.unsqueeze(0))[0].requires_grad
    for value in (layer.weight_hh_l0, x, state):
        value.requires_grad_()
        assert layer.step(x, state)[0].requires_grad
        assert layer(x.unsqueeze(0), state)[0].requires_grad
        value.requires_grad_(False)
    with torch.inference_mode():
        assert layer.step(x, state)[0].is_inference()
    assert not layer.step(x, state)[0].requires_grad


def test_the_quick_way_leaves_odd_states_to_the_general_one():
    layer, x = cf.GRU(16, 32), torch.randn(5, 3, 16)
    for wrong in (5, torch.zeros(1, 2, 32), (torch.zeros(1, 3, 32), None)):
        with pytest.raises(
            (cf.errors.ShapeError, cf.errors.InputError, cf.errors.OptionTypeError, TypeError)
        ):
            layer(x, wrong)
    learned = torch.nn.Parameter(torch.randn(1, 3, 32))
    layer(x, learned)[0].sum().backward()
    eager = cf.GRU(16, 32, backend="eager")
    eager.load_state_dict(layer.state_dict())
    (want,) = torch.autograd.grad(eager(x, learned)[0].sum(), learned)
    torch.testing.assert_close(learned.grad, want)


@pytest.mark.usefixtures("way")
def test_an_output_does_not_hold_what_is_kept_for_backward():
    layer, x = cf.LSTM(16, 32), torch.randn(50, 3, 16)
    output, _ = layer(x)
    assert output.untyped_storage().nbytes() == output.numel() * 4
    output.mul_(2)  # allowed, as of any output that is not needed again
    output.sum().backward()


def test_a_frozen_layer_gives_the_inputs_gradient_alone():
    layer, x = cf.GRU(16, 32).requires_grad_(False), torch.randn(5, 3, 16, requires_grad=True)
    eager = cf.GRU(16, 32, backend="eager").requires_grad_(False)
    eager.load_state_dict(layer.state_dict())
    for _ in range(2):
        got, want = (torch.autograd.grad(each(x)[0].sum(), x)[0] for each in (layer, eager))
        torch.testing.assert_close(got, want)
        assert all(weight.grad is None for weight in layer.parameters())


def test_saved_tensors_may_come_back_in_another_layout():
    layer, x = cf.GRU(16, 32), torch.randn(5, 3, 16, requires_grad=True)
    want = torch.autograd.grad(layer(x)[0].sum(), [x, *layer.parameters()])

    def turned(value):
        return value.t().contiguous() if value.dim() == 2 else value

    with torch.autograd.graph.saved_tensors_hooks(turned, lambda v: v.t() if v.dim() == 2 else v):
        got = torch.autograd.grad(layer(x)[0].sum(), [x, *layer.parameters()])
    for value, wanted in zip(got, want, strict=True):
        assert torch.equal(value, wanted)
