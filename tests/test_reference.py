"""A cell's function on tensors is what its layer computes."""

import pytest
import torch

import cellfuse as cf
from cellfuse.reference import one_step
from codegen import cells_of_tests
from compare import OPTIONS, assert_same

CELLS = cf.cells.CELLS | cells_of_tests.CELLS


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_the_function_on_tensors_is_a_step_of_the_layer(name, bias):
    options = OPTIONS.get(name, cells_of_tests.OPTIONS.get(name, {}))
    cell = CELLS[name]
    layer = cell.layer(3, 4, bias=bias, dtype=torch.float64, backend="eager", **options)
    weights = {key.removesuffix("_l0"): value for key, value in layer.state_dict().items()}
    for value in weights.values():
        value.uniform_(0.1, 1)
    x = torch.randn(5, 3, dtype=torch.float64)
    states = tuple(torch.rand_like(s[0]) + 0.5 for s in layer.initial_states(5, x))
    made = one_step(cell, weights, x, *states, num_heads=options.get("num_heads", 1))
    if cell.output_is_a_state:
        new = made if isinstance(made, tuple) else (made,)
        output = new[[*cell.step.results[1:]].index(cell.step.results[0])]
    else:
        output, new = made
    wanted, finals = layer(
        x.unsqueeze(0), tuple(s.unsqueeze(0) for s in states)[slice(None) if len(states) > 1 else 0]
    )
    assert_same(output, wanted[0])
    for got, want in zip(new, finals if isinstance(finals, tuple) else (finals,), strict=True):
        assert_same(got.expand_as(want[0]), want[0])
