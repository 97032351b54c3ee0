"""The comparators of the tests, and the registry's cells with the options each needs."""

import numpy as np
import torch

import cellfuse as cf

# Options without which a cell cannot be made.
OPTIONS = {"projected_lstm": {"proj_size": 2}, "slstm": {"num_heads": 2}}


def array(value):
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().double()  # NumPy has no bfloat16
    return np.asarray(value, dtype=np.float64)


def assert_as_accurate(got, want, baseline, *, factor=2.0, floor=1e-7, what="value"):
    """Fail unless `got` is within `factor` times the error of a plain run in the same precision.

    got: the result under test. want: the float64 result. baseline: a plain run in got's precision.
    floor: one rounding of a float32 number near 1.
    """
    got, want, baseline = array(got), array(want), array(baseline)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    assert np.isfinite(got).all(), f"{what}: {(~np.isfinite(got)).sum()} values are not finite"
    if not got.size:
        return
    error, allowed = np.abs(got - want).max(), factor * np.abs(baseline - want).max() + floor
    assert error <= allowed, f"{what}: error {error:.2e}, a plain run allows {allowed:.2e}"


def assert_same(got, want, *, tolerance=1e-12, what="value"):
    """Fail unless two float64 results agree to `tolerance`."""
    got, want = array(got), array(want)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    error = np.abs(got - want).max() if got.size else 0.0
    assert error <= tolerance, f"{what}: differ by {error:.2e}"


def small_layer(name, input_size=3, hidden_size=4, **options):
    """A float64 layer of a registry cell."""
    cell = cf.cells.find(name)
    options = {"dtype": torch.float64, "backend": "eager"} | OPTIONS.get(name, {}) | options
    return cell.layer(input_size, hidden_size, **options)
