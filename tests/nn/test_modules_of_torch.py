"""torch's own module inputs, references and error inputs, on our classes."""

import warnings

import pytest
import torch

import cellfuse as cf

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

INFOS = {info.module_cls.__name__: info for info in module_db}
# How many inputs torch 2.13 has in each of the two modes; an empty loop must not pass.
COUNTS = {"RNN": 32, "GRU": 16, "LSTM": 32, "RNNCell": 3, "GRUCell": 2, "LSTMCell": 2}
BACKENDS = {name: (["cpu", "aten", "eager"] if "Cell" not in name else [None]) for name in COUNTS}
CASES = [(name, backend) for name in COUNTS for backend in BACKENDS[name]]


def make(name, backend, given):
    options = dict(given.kwargs)
    if backend:
        options["backend"] = backend
    return getattr(cf, name)(*given.args, **options)


@pytest.mark.parametrize(("name", "backend"), CASES)
@pytest.mark.parametrize("training", [True, False])
def test_inputs_and_references(name, backend, training):
    info = INFOS[name]
    inputs = info.module_inputs_func(
        info, device="cpu", dtype=torch.float64, requires_grad=True, training=training
    )
    assert len(inputs) >= COUNTS[name]
    for case in inputs:
        given = case.constructor_input
        given.kwargs.update(device="cpu", dtype=torch.float64)
        theirs = info.module_cls(*given.args, **given.kwargs)
        ours = make(name, backend, given)
        ours.load_state_dict(theirs.state_dict())
        ours.train(training)
        args, kwargs = case.forward_input.args, case.forward_input.kwargs
        got, want = ours(*args, **kwargs), theirs(*args, **kwargs)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
        if case.reference_fn is not None:
            reference = case.reference_fn(ours, *args, **kwargs)
            torch.testing.assert_close(got, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "backend"), CASES)
def test_error_inputs(name, backend, dtype):
    info = INFOS[name]
    cases = info.module_error_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=True)
    assert len(cases) >= 4
    for case in cases:
        given = case.module_error_input.constructor_input
        if case.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(case.error_type, match=case.error_regex):
                make(name, backend, given)
            continue
        given.kwargs.setdefault("dtype", dtype)
        module = make(name, backend, given)
        forward = case.module_error_input.forward_input
        with pytest.raises(case.error_type, match=case.error_regex):
            module(*forward.args, **forward.kwargs)
