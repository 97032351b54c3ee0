"""The counts are exact: against real tensors, torch's own counter of FLOPs, and brute force."""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import cellfuse as cf
from cellfuse.explain import memory
from cellfuse.explain.counts import value_of
from cellfuse.runtime.torch_text import torch_function
from compare import OPTIONS
from explain.cases import FORMS, GRID, B, H, I, leaky, made, options, read_out

CELLS = [*cf.cells.CELLS.values(), leaky, read_out]


def layers(cell, every):
    for form, L, D, bias in GRID[::every]:
        some = options(form, L, D, bias) | OPTIONS.get(cell.name, {})
        layer = cell.layer(I, H, backend="eager", **some)
        yield layer, made(layer, form)


def modules_of_one_step():
    for cell in CELLS:
        for bias in (True, False):
            some = OPTIONS.get(cell.name, {})
            module = cell.one_step(I, H, bias=bias, dtype=torch.float64, **some)
            yield module, torch.randn(B, I, dtype=torch.float64)
            yield module, torch.randn(I, dtype=torch.float64)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_parameters_are_counted(cell):
    for layer, input in layers(cell, every=7):
        facts = cf.explain(layer, input)
        assert facts.count("count parameters") == sum(p.numel() for p in layer.parameters())
        constants = sum(b.numel() for b in layer.buffers())
        assert [c.value for c in facts.counts if c.key == "count constants"] == [constants][: constants > 0]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_multiply_adds_are_those_torch_counts(cell):
    for layer, input in layers(cell, every=7):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(input)
        facts = cf.explain(layer, input)
        assert 2 * facts.count("count multiply-adds") == counter.get_total_flops(), layer


def test_counts_of_one_step():
    for module, input in modules_of_one_step():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(input)
        facts = cf.explain(module, input)
        assert facts.count("count parameters") == sum(p.numel() for p in module.parameters())
        assert 2 * facts.count("count multiply-adds") == counter.get_total_flops(), module


@pytest.mark.parametrize("form", FORMS)
def test_counts_of_torch_s_layers(form):
    for kind in (torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM):
        for L, D, bias in ((1, 1, True), (2, 2, True), (3, 2, False), (3, 1, True)):
            layer = kind(I, H, **options(form, L, D, bias))
            ours = getattr(cf, kind.__name__)(I, H, **options(form, L, D, bias))
            facts = cf.explain(layer, made(layer, form))
            assert facts.count("count parameters") == sum(p.numel() for p in layer.parameters())
            assert facts.counts == cf.explain(ours, made(layer, form)).counts


def test_every_number_is_its_formula():
    for cell in CELLS:
        for layer, input in layers(cell, every=11):
            facts = cf.explain(layer, input)
            for count in facts.counts:
                assert value_of(count.formula, facts.sizes) == count.value, count


class CountNumbers(TorchDispatchMode):
    """Counts the numbers that element-wise operations make and reductions read."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name == "reciprocal":  # half of 1 / x, which torch makes as reciprocal(x) * 1
            pass
        elif torch.Tag.pointwise in function.tags:
            self.count += result.numel()
        elif name in ("sum", "amax"):
            self.count += args[0].numel()
        return result


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
@pytest.mark.parametrize("bias", [True, False])
def test_element_wise_operations_are_counted(cell, bias):
    some = OPTIONS.get(cell.name, {})
    module = cell.one_step(I, H, bias=bias, dtype=torch.float64, **some)
    step = cell.step if bias else cell.step_without_bias
    sizes = {"H": H, "P": 2, "N": 2, "K": H // 2}
    values = [torch.rand(1, *(sizes[a] for a in leaf.shape), dtype=torch.float64) for leaf in step.inputs]
    values = [
        value[0] if leaf.role in ("matrix", "parameter") else value
        for value, leaf in zip(values, step.inputs, strict=True)
    ]
    axes = {axis: torch.tensor(float(size)) for axis, size in sizes.items()}
    with CountNumbers() as counter, torch.no_grad():
        torch_function(step)(*values, axes)
    added = H * len(cell.input_gates) if bias and "ih" in cell.biases else 0
    counted = cf.explain(module, torch.randn(I, dtype=torch.float64)).count("count element-wise")
    assert counted == counter.count + added


def longest_chain(L, D, T):
    """Steps on the longest way through the layer, followed one by one."""
    below = [0] * T
    for _ in range(L):
        lanes = []
        for direction in range(D):
            done, order = [0] * T, range(T) if direction == 0 else range(T - 1, -1, -1)
            before = 0
            for t in order:
                before = done[t] = max(before, below[t]) + 1
            lanes.append(done)
        below = [max(each) for each in zip(*lanes, strict=True)]
    return max(below)


def test_steps_in_a_row():
    for L in (1, 2, 4):
        for D in (1, 2):
            for T in (1, 2, 7):
                layer = cf.GRU(I, H, num_layers=L, bidirectional=D == 2)
                facts = cf.explain(layer, seq_len=T)
                chain = next(c.value for c in facts.counts if c.key.startswith("count chain"))
                assert chain == longest_chain(L, D, T)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_bytes_are_those_of_the_tensors(dtype, form):
    layer = leaky.layer(I, H, **options(form, 2, 2, True)).to(dtype)
    input = made(layer, form).to(dtype)
    output, states = layer(input)
    facts = cf.explain(layer, input)

    def size(*tensors):
        data = [t.data if isinstance(t, PackedSequence) else t for t in tensors]
        return sum(t.numel() * t.element_size() for t in data)

    assert facts.count("bytes parameters") == size(*layer.parameters(), *layer.buffers())
    assert facts.count("bytes input") == size(input)
    assert facts.count("bytes output") == size(output)
    assert facts.count("bytes state") == size(*states)
    for fact in facts.tensors:
        if fact.role in ("parameter", "constant"):
            assert fact.bytes == size(getattr(layer, fact.name))


def allocated(layer, input):
    """Bytes that torch's allocator gave to one forward pass and did not get back."""
    layer(input)  # what stays for ever, such as a table of offsets, is made by the first call
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = layer(input)
    events = profiler.profiler.kineto_results.events()
    del kept
    return sum(event.nbytes() for event in events if event.name() == "[memory]")


@pytest.mark.parametrize(
    ("make", "some"),
    [
        (cf.LSTM, {}),
        (cf.LSTM, {"backend": "cpu", "num_layers": 2, "bidirectional": True}),
        (cf.LSTM, {"backend": "eager"}),
        (cf.LSTM, {"recompute": True}),
        (cf.GRU, {"num_layers": 3, "dropout": 0.5}),
        (cf.RNN, {"bidirectional": True}),
        (cf.cells.peephole_lstm.layer, {}),
        (leaky.layer, {"bidirectional": True}),
        (torch.nn.LSTM, {"num_layers": 2, "bidirectional": True}),
        (torch.nn.GRU, {"batch_first": True}),
    ],
    ids=lambda value: getattr(value, "__qualname__", None),
)
@pytest.mark.parametrize("sizes", [(50, 8, 64), (7, 3, 20)], ids=str)
def test_memory_of_training_is_what_the_allocator_gives(make, some, sizes):
    T, B, hidden = sizes
    layer = make(10, hidden, **some)
    input = torch.randn(B, T, 10) if some.get("batch_first") else torch.randn(T, B, 10)
    found = cf.explain(layer, input).memory
    assert found.alive == pytest.approx(allocated(layer.train(), input), rel=0.01)
    assert 0 < found.kept <= found.alive


def test_memory_without_gradients_and_in_inference_mode():
    frozen = cf.GRU(I, H).requires_grad_(False)
    assert cf.explain(frozen).memory.kept == 0
    with torch.inference_mode():
        layer, input = cf.LSTM(I, H), torch.randn(5, B, I)
        expected = cf.explain(layer, torch.randn(5, B, I).clone()).memory
        assert cf.explain(layer, input).memory == expected
        assert cf.explain(layer, input, (torch.zeros(1, B, H), torch.zeros(1, B, H))).memory.kept > 0
        assert cf.explain(torch.nn.LSTM(I, H), input, lengths=[5, 3, 2][:B]).memory.kept > 0


def test_memory_of_very_large_sequences_is_not_measured(monkeypatch):
    monkeypatch.setattr(memory, "_MOST", 100)
    facts = cf.explain(cf.GRU(I, H))
    assert facts.memory is None
    assert "not measured" in facts.text("en")
    assert "不实测" in facts.text("zh")


def test_the_axes_of_every_tensor_have_their_sizes():
    for cell in CELLS:
        for layer, input in layers(cell, every=11):
            facts = cf.explain(layer, input)
            for fact in facts.tensors:
                letters = [letter.replace("/", "//") for letter in fact.letters]
                assert tuple(value_of(letter, facts.sizes) for letter in letters) == fact.shape, fact


def test_the_lstm_of_the_issue():
    facts = cf.explain(cf.LSTM(10, 20, 2, bidirectional=True), seq_len=5, batch=3)
    # Per direction: 80 * (10 + 20) + 160 in layer 0, 80 * (40 + 20) + 160 in layer 1.
    assert facts.count("count parameters") == 2 * (80 * 30 + 160 + 80 * 60 + 160) == 15040
    assert facts.count("count multiply-adds") == 15 * 2 * (80 * 30 + 80 * 60)
    # 3 sigmoids, 2 tanh, 3 products, 1 sum, and 3 sums for each of 4 pre-activations.
    assert facts.count("count element-wise") == 15 * 4 * 20 * (5 + 3 + 1 + 12)
