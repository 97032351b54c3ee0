"""torch.compile and export: in a fresh process, without unrolling, with a graph for all lengths."""

import pickle
import subprocess
import sys
import time

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import cellfuse as cf
from compare import small_layer


@pytest.fixture(autouse=True)
def nothing_compiled_yet():
    torch.compiler.reset()  # the number of graphs of one function is limited in a process
    yield
    torch.compiler.reset()


# Every layer has a cell of its own, so that each is the first of its cell in the process.
FRESH = """
import sys, warnings
import torch
import cellfuse as cf

@cf.cell(gates="n", states="h", source="none: a cell of the tests")
def leaky(gate, h):
    h = 0.9 * h + torch.tanh(gate.n)
    return 2 * h, (h,)

x = torch.randn(4, 2, 3)
converted = cf.convert(torch.nn.RNN(3, 4, dtype=torch.bfloat16), None)
cases = [
    (cf.GRU(3, 4, 2, backend="eager"), x),
    (cf.LSTM(3, 4, dtype=torch.float64, backend="eager"), x.double()),
    (cf.cells.mgu.layer(3, 4, bias=False, backend="eager"), x),
    (cf.cells.mgu.layer(3, 4), x),
    (converted, x.bfloat16()),
    (leaky.one_step(3, 4), x[0]),
    (cf.convert(torch.nn.RNNCell(3, 4, nonlinearity="relu"), None), x[0]),
]
for layer, value in cases:
    layer.eval()
    if sys.argv[1] == "compile":
        got = torch.compile(layer, backend="eager", fullgraph=True)(value)
    else:
        got = torch.export.export(layer, (value,), strict=sys.argv[1] == "strict").module()(value)
    tolerance = {"rtol": 0.02, "atol": 0.01} if value.dtype == torch.bfloat16 else {}
    torch.testing.assert_close(got, layer(value), **tolerance)
"""


@pytest.mark.parametrize("how", ["compile", "strict", "export"])
def test_in_a_fresh_process(how):
    done = subprocess.run([sys.executable, "-c", FRESH, how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_loaded_layer_is_ready_for_compile():
    for module in (cf.cells.mgu.layer(3, 4), cf.cells.mgu.one_step(3, 4)):
        text = pickle.dumps(module)
        del module.cell.step.__dict__["torch_step"]
        pickle.loads(text)
        assert "torch_step" in module.cell.step.__dict__


@cf.cell(gates="fn", source="none: a cell of the tests")
def custom(gate, h):
    """One step of a cell that torch does not have."""
    f = torch.sigmoid(gate.f)
    return f * h + (1 - f) * torch.tanh(gate.n)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "custom"])
def test_long_sequences_compile_quickly_and_once(name, training):
    layer = custom.layer(4, 8, 2, bidirectional=True) if name == "custom" else getattr(cf, name)(4, 8, 2)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    start = time.perf_counter()
    for T in (300, 200, 77, 411):
        x = torch.randn(T, 2, 4)
        with torch.set_grad_enabled(training):
            got, want = compiled(x)[0], layer(x)[0]
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        if training:
            got.sum().backward()
    assert time.perf_counter() - start < 5
    assert len(graphs) <= 2  # one for T = 300, one for every T
    assert all(len(graph.graph.nodes) < 300 for graph in graphs)


def test_where_the_steps_are_unrolled_is_said():
    layer = cf.GRU(3, 4, backend="cpu", device="meta")
    with pytest.raises(Exception, match="unrolled"):
        torch.compile(layer, backend="eager", fullgraph=True)(torch.randn(3, 2, 3, device="meta"))


@pytest.mark.parametrize("options", [{"recompute": True}, {"bias": False, "batch_first": True}], ids=str)
def test_options_are_compiled_without_unrolling(options):
    layer, graphs = cf.GRU(3, 4, backend="cpu", **options), []

    def backend(graph, inputs):
        graphs.append(len(graph.graph.nodes))
        return graph

    x = torch.randn(70, 2, 3)
    torch.testing.assert_close(torch.compile(layer, backend=backend, fullgraph=True)(x)[0], layer(x)[0])
    assert graphs[0] < 70


@torch.no_grad()
def test_packed_sequences_run_between_graphs():
    """Unless the number of sequences is known: see tests/runtime/test_transforms.py."""
    packed = pack_padded_sequence(torch.randn(3, 2, 3), torch.tensor([3, 2]))
    layer = cf.GRU(3, 4)
    got = torch.compile(layer, backend="eager")(packed)[0]
    torch.testing.assert_close(got.data, layer(packed)[0].data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "mgu"])
def test_compile_does_not_change_the_dtype_under_autocast(name, dtype):
    layer = small_layer(name, dtype=dtype, backend="auto")
    x = torch.randn(3, 2, 3, dtype=dtype)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    for low in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", low):
            got, want = compiled(x), layer(x)
        torch.testing.assert_close(got, want, rtol=0.05, atol=0.02)
