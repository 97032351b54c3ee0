"""RNN, GRU, LSTM against torch.nn over every option; the figures come from scripts/parity.py."""

import importlib.util
from pathlib import Path

import pytest
import torch

import cellfuse as cf

_spec = importlib.util.spec_from_file_location("parity", Path(__file__).parents[2] / "scripts" / "parity.py")
parity = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(parity)
CASES = list(parity.cases())


def test_all_combinations_are_there():
    assert len(CASES) == 240


@pytest.mark.parametrize("backend", ["cpu", "aten", "eager"])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_outputs_states_and_every_gradient_equal_torch(name, backend):
    for case in CASES:
        if case[0] == name:
            exact, ratio = parity.compare(*case, backend)
            assert exact < 1e-12, (case, exact)
            assert ratio <= 1, (case, ratio)


def test_the_comparison_sees_a_swapped_gate(monkeypatch):
    rows = cf.runtime.eager._gate_rows
    monkeypatch.setattr(cf.runtime.eager, "_gate_rows", lambda w, places, H: rows(w, places, H).flip(0))
    exact, _ = parity.compare("LSTM", {"num_layers": 1}, "batched", "eager")
    assert exact > 1e-3


@pytest.mark.parametrize("backend", ["cpu", "aten", "eager"])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_dropout_draws_as_torch_does(name, backend):
    theirs = getattr(torch.nn, name)(4, 5, 3, dropout=0.5, bidirectional=True)
    ours = getattr(cf, name)(4, 5, 3, dropout=0.5, bidirectional=True, backend=backend)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(6, 2, 4)
    torch.manual_seed(7)
    want = theirs(x)[0]
    torch.manual_seed(7)
    torch.testing.assert_close(ours(x)[0], want)
    torch.testing.assert_close(ours.eval()(x)[0], theirs.eval()(x)[0])
    assert not torch.equal(want, theirs(x)[0])
