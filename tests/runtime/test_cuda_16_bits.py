"""What stands in 16 bits where layers run step by step on a GPU, and how exact they are beside torch's.

Large values of each time step have the layer's format; states and sums are float32, arithmetic, too.
"""

import pytest
import torch

from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.runtime.per_step import PerStep
from compare import assert_as_accurate
from gpu.emulator.launcher import Emulator
from runtime.emulated import emulated, pair, results
from runtime.test_cuda_per_step import CELLS, times_of

pytestmark = emulated
# Bytes of a time step of a sequence for each of H units, in 16 bits and in float32: of a run without
# gradients, of what a backward run reads, of what it has besides. LSTM: 4 input products, states h and c,
# 1 kept value; output's gradient and 4 gradients. layer_norm_lstm: 9 kept values, 22 gradients.
BYTES = {
    "rnn": ((6, 8), (6, 8), (4, 8)),
    "gru": ((10, 16), (12, 20), (10, 20)),
    "lstm": ((16, 24), (18, 28), (10, 20)),
    "layer_norm_lstm": ((16, 24), (34, 60), (46, 92)),
    "slstm": ((24, 32), (30, 44), (10, 20)),
    "mingru": ((8, 12), (8, 12), (6, 12)),
    "leaky": ((8, 12), (8, 12), (4, 8)),
}
H, B = 64, 3


def size(tensors):
    return sum(each.numel() * each.element_size() for each in tensors)


def by_loop(name, dtype, T):
    """Bytes of all memory of a run without gradients, of what is kept, of the rest of a backward run."""
    runner = PerStep(CELLS[name], True, Sizes(H), dtype, Emulator())
    times, like = times_of((T,) * B, False), torch.empty(1, dtype=dtype)
    infer, forward = (runner.memory(loop, times, like) for loop in ("infer", "forward"))
    kept = runner._made(forward, times, True)[2]
    backward = runner.memory("backward", times, like, kept)
    own = [value for key, value in backward.tensors.items() if key not in kept.buffers]
    everything = [[*each.slabs, *each.tensors.values()] for each in (infer, forward)]
    left = [*kept.slabs, *kept.buffers.values()]
    assert size(left) <= size(everything[1])
    return size(everything[0]), size(left), size(own)


def numbers(name):
    """Of kept values and gradients that are one number for a whole row: always float32."""
    program = PerStep(CELLS[name], True, Sizes(H), torch.float32, Emulator()).program
    return [len(program.buffers[key].columns) * 4 for key in ("kept_numbers", "gradient_numbers")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", BYTES)
def test_bytes_of_a_time_step(name, dtype):
    one, two = by_loop(name, dtype, 8), by_loop(name, dtype, 9)
    wanted = [pair[dtype == torch.float32] * H for pair in BYTES[name]]
    wanted = [a + b for a, b in zip(wanted, [0, *numbers(name)], strict=True)]
    assert [(b - a) / B for a, b in zip(one, two, strict=True)] == wanted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gru", "lstm", "rnn"])
def test_a_training_call_saves_no_more(name, dtype, device):
    layer, _ = pair(name, 5, H, dtype=dtype)
    saved = []
    for T in (8, 9):
        found = {}
        x = torch.randn(T, B, 5).to(dtype)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda v, found=found: found.setdefault(v.data_ptr(), v), lambda v: v
        ):
            layer(x)
        saved.append(size(found.values()))
    assert saved[1] - saved[0] == B * (BYTES[name][1][0] * H + 5 * 2)  # and the input


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gru", "lstm", "rnn"])
def test_error_is_at_most_twice_that_of_torch(name, dtype, device):
    ours, eager = pair(name, 8, 32, dtype=dtype)
    theirs = getattr(torch.nn, name.upper())(8, 32, dtype=dtype)
    theirs.load_state_dict(ours.state_dict())
    eager.load_state_dict(ours.state_dict())
    values, found = torch.randn(50, 4, 8).to(dtype), []
    assert ours.plan(values).startswith("cuda, per step")
    for layer, kind in ((ours, dtype), (eager.double(), torch.float64), (theirs, dtype)):
        x = values.detach().to(kind).requires_grad_()
        found.append(results(layer, x, None, [x]))
    for k, (got, want, baseline) in enumerate(zip(*found, strict=True)):
        assert_as_accurate(got, want, baseline, what=f"result {k}")
