"""reset=: sequences that start anew inside, against each piece run by itself in float64."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import cellfuse as cf
from cellfuse.cells import CELLS
from cellfuse.errors import InputError, ShapeError
from compare import OPTIONS, assert_same

T, B, I, H = 9, 4, 3, 6
LENGTHS = [9, 7, 4, 1]


def tuple_of(states):
    return states if isinstance(states, tuple) else (states,)


def masks():
    """Random ones; and none, the first step only, all."""
    torch.manual_seed(1)
    some = torch.rand(T, B) < 0.3
    some[:, 1] = False
    first = torch.zeros(T, B, dtype=torch.bool)
    first[0, ::2] = True
    return {"some": some, "none": torch.zeros_like(some), "first": first, "all": torch.ones_like(some)}


def piece_by_piece(layer, x, hx, reset, lengths):
    """Each piece alone through the eager layer: the sequence's states go in where its lane begins."""
    D, L = layer.num_directions, layer.num_layers
    output = x.new_zeros(T, B, layer.output_size)
    finals = [torch.zeros_like(state) for state in hx]
    for b, length in enumerate(lengths):
        starts = sorted({0, *(t for t in range(length) if reset[t, b])})
        for start, stop in zip(starts, [*starts[1:], length], strict=True):
            states = [value.clone() for value in layer.initial_states(1, x)]
            for state, given in zip(states, hx, strict=True):
                if start == 0 and not reset[0, b]:
                    state[0::D] = given[0::D, b : b + 1]
                if D == 2 and stop == length:
                    state[1::D] = given[1::D, b : b + 1]
            made, ends = layer(x[start:stop, b : b + 1], tuple(states) if len(states) > 1 else states[0])
            output[start:stop, b] = made[:, 0]
            for final, end in zip(finals, tuple_of(ends), strict=True):
                for k in range(L * D):
                    if (k % D == 0 and stop == length) or (k % D == 1 and start == 0):
                        final[k, b] = end[k, 0]
    return output, finals


def inputs(layer, lengths=None):
    torch.manual_seed(2)
    x = torch.randn(T, B, I, dtype=torch.float64)
    for b, length in enumerate(lengths or []):
        x[length:, b] = 0
    # Positive, because sLSTM divides by one of its states.
    hx = [torch.rand_like(value.nan_to_num(neginf=0.0)) for value in layer.initial_states(B, x)]
    return [value.requires_grad_() for value in (x, *hx)]


def pair(name, backend, **options):
    torch.manual_seed(0)
    options = OPTIONS.get(name, {}) | {"dtype": torch.float64} | options
    layer = cf.cells.find(name).layer(I, H, backend=backend, **options)
    eager = cf.cells.find(name).layer(I, H, backend="eager", **options)
    eager.load_state_dict(layer.state_dict())
    return layer, eager


def assert_pieces(layer, eager, mask, lengths):
    """Output, states and every gradient equal those of the pieces."""
    is_packed = lengths is not None
    x, *hx = inputs(layer, lengths)
    given = tuple(hx) if len(hx) > 1 else hx[0]
    if is_packed:
        packed, reset = (pack_padded_sequence(value, lengths) for value in (x, mask))
        output, finals = layer(packed, given, reset)
        output = pad_packed_sequence(output, total_length=T)[0]
    else:
        output, finals = layer(x, given, mask)
    want, ends = piece_by_piece(eager, x, hx, mask, lengths or [T] * B)
    weights = [torch.randn_like(value) for value in (want, *ends)]
    got, want = (output, *tuple_of(finals)), (want, *ends)
    for ours, theirs in zip(got, want, strict=True):
        assert_same(ours, theirs, tolerance=1e-12)
    gradients = []
    for values, module in ((got, layer), (want, eager)):
        loss = sum((v * w).sum() for v, w in zip(values, weights, strict=True))
        leaves = [x, *hx, *module.parameters()]
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        gradients.append(
            [torch.zeros_like(v) if g is None else g for v, g in zip(leaves, found, strict=True)]
        )
    for ours, theirs in zip(*gradients, strict=True):
        assert_same(ours, theirs, tolerance=1e-11)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["padded", "packed"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("name", ["lstm", "gru", "projected_lstm", "slstm", "mingru"])
def test_resets_equal_pieces_run_alone(name, directions, lengths):
    for backend in ("auto", "eager"):
        layer, eager = pair(name, backend, num_layers=2, bidirectional=directions == 2)
        for mask in masks().values():
            assert_pieces(layer, eager, mask, lengths)


@pytest.mark.parametrize("name", list(CELLS))
def test_every_cell_takes_resets(name):
    layer, eager = pair(name, "auto")
    assert_pieces(layer, eager, masks()["some"], None)


@pytest.mark.parametrize("is_batched", [True, False])
@pytest.mark.parametrize("name", ["gru", "slstm"])
def test_steps_with_resets_equal_the_sequence(name, is_batched):
    layer, _ = pair(name, "auto", num_layers=2)
    x, *hx = inputs(layer)
    mask, state = masks()["some"], tuple(hx) if len(hx) > 1 else hx[0]
    if not is_batched:
        x, mask, state = x[:, 0], mask[:, 0], tuple(value[:, 0] for value in hx)
        state = state if len(state) > 1 else state[0]
    output, finals = layer(x, state, mask)
    for t in range(T):
        y, state = layer.step(x[t], state, mask[t])
        assert_same(y, output[t], tolerance=1e-12)
    for ours, want in zip(tuple_of(state), tuple_of(finals), strict=True):
        assert_same(ours, want, tolerance=1e-12)


def test_the_mask_is_laid_out_as_the_input():
    layer, first = cf.GRU(I, H, bidirectional=True), cf.GRU(I, H, batch_first=True, bidirectional=True)
    first.load_state_dict(layer.state_dict())
    x, mask = torch.randn(T, B, I), masks()["some"]
    output, h_n = layer(x, reset=mask)
    swapped, again = first(x.transpose(0, 1), reset=mask.T)
    assert torch.equal(swapped.transpose(0, 1), output)
    assert torch.equal(again, h_n)
    alone, h_alone = layer(x[:, 2], reset=mask[:, 2])
    torch.testing.assert_close(alone, output[:, 2])
    torch.testing.assert_close(h_alone, h_n[:, 2])


def test_what_went_wrong_before_a_reset_stays_there():
    for fault in (float("nan"), float("inf")):
        layer, x = cf.LSTM(I, H, num_layers=2), torch.randn(T, B, I)
        x[3, 1] = fault
        x.requires_grad_()
        mask = torch.zeros(T, B, dtype=torch.bool)
        mask[5, 1] = True
        output, _ = layer(x, reset=mask)
        assert output[3:5, 1].isnan().all()
        clean = output.detach().clone()
        clean[3:5, 1] = 0
        assert clean.isfinite().all()
        output[5:].sum().backward()
        assert x.grad[5:].isfinite().all()
        assert x.grad[:, 0].isfinite().all()


def test_no_step_and_no_sequence():
    layer = cf.LSTM(I, H)
    for steps, batch in ((0, 2), (3, 0), (0, 0), (1, 1)):
        output, (h, _) = layer(torch.randn(steps, batch, I), reset=torch.ones(steps, batch, dtype=torch.bool))
        assert output.shape == (steps, batch, H)
        assert h.shape == (1, batch, H)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch asks itself behind a break
def test_resets_under_compile_break_the_graph_and_equal_eager():
    layer, x, mask = cf.GRU(I, H), torch.randn(T, B, I), masks()["some"]
    want, h_n = layer(x, reset=mask)
    got, state = torch.compile(layer)(x, reset=mask)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(state, h_n)


def test_a_compiled_graph_that_must_be_whole_says_why_it_cannot_be():
    torch._dynamo.reset()  # or a graph of the test before is taken
    layer, x, mask = cf.GRU(I, H), torch.randn(T, B, I), masks()["some"]
    with pytest.raises(torch._dynamo.exc.Unsupported, match="reset= cuts sequences by its values"):
        torch.compile(layer, fullgraph=True)(x, reset=mask)


def test_a_wrong_mask_is_named():
    layer, x = cf.GRU(I, H), torch.randn(T, B, I)
    with pytest.raises(
        InputError, match=r"reset is torch.float32, expected a tensor of torch.bool \[9, 4\].*bool\(\)"
    ):
        layer(x, reset=torch.ones(T, B))
    with pytest.raises(InputError, match="reset is list"):
        layer(x, reset=[True])
    with pytest.raises(ShapeError, match=r"reset is \[4, 9\], expected \[9, 4\]: it is laid out as"):
        layer(x, reset=torch.ones(B, T, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"reset is \[1\], expected \[4\]"):
        layer.step(x[0], layer(x)[1], torch.ones(1, dtype=torch.bool))
    packed = pack_padded_sequence(x, LENGTHS)
    with pytest.raises(InputError, match="Pack it alike"):
        layer(packed, reset=torch.ones(T, B, dtype=torch.bool))
    other = pack_padded_sequence(torch.ones(T, B, dtype=torch.bool), [9, 6, 5, 1])
    with pytest.raises(ShapeError, match="packed otherwise"):
        layer(packed, reset=other)
