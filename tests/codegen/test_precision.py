"""exp, sigmoid, tanh and softplus against float64, in units of the last place; special values."""

import ctypes
import math

import numpy as np
import pytest

from cellfuse.codegen.cpu import functions
from cellfuse.codegen.cpu.compile import _link, object_code
from cellfuse.codegen.cpu.target import host
from cellfuse.codegen.cpu.text import Code, Module

EXACT = {
    "exp": np.exp,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "softplus": lambda x: np.logaddexp(0, x),
}
# Largest errors in units of the last place, as the module's first lines say.
LIMITS = {"exp": 1.1, "sigmoid": 2.5, "tanh": 2.3, "softplus": 3.5}
TYPES = {32: np.float32, 64: np.float64}


def compiled(name, bits):
    target = host()
    module = Module(bits, target.lanes(bits))
    code = Code(module)
    with code.loop(0, "%count", module.lanes) as loop:
        value = getattr(functions, name)(code, code.load(code.at("%in", loop.index)))
        code.store(value, code.at("%out", loop.index))
    code.define("apply", ("ptr %in", "ptr %out", "i64 %count"), "")
    engine = _link(object_code(str(module), target), target)
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    apply = call(engine.get_function_address("apply"))

    def run(values):
        padded = np.zeros(-(-len(values) // 16) * 16, TYPES[bits])
        padded[: len(values)] = values
        out = np.full_like(padded, np.nan)
        apply(padded.ctypes.data, out.ctypes.data, len(padded))
        return out[: len(values)]

    run.engine = engine
    return run


@pytest.mark.parametrize("name", LIMITS)
def test_error_in_units_of_the_last_place(name):
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.uniform(-20, 20, 200_000), rng.normal(size=200_000), rng.normal(size=50_000) * 1e-4]
    )
    x = x.astype(np.float32)
    want = EXACT[name](x.astype(np.float64))
    error = np.abs(compiled(name, 32)(x) - want) / np.spacing(np.abs(want).astype(np.float32))
    print(name, error.max(), error.mean())
    assert error.max() <= LIMITS[name]
    assert error.mean() <= 0.5


@pytest.mark.parametrize("name", LIMITS)
def test_double_precision(name):
    x = np.random.default_rng(0).uniform(-20, 20, 100_000)
    np.testing.assert_allclose(compiled(name, 64)(x), EXACT[name](x), rtol=2e-15, atol=1e-300)


@pytest.mark.parametrize(("bits", "tiny", "gone"), [(32, -87.3, -88.1), (64, -708.0, -709.2)])
def test_sigmoid_is_right_down_to_the_smallest_ordinary_numbers_and_then_zero(bits, tiny, gone):
    x = np.linspace(tiny, 40, 100_000).astype(TYPES[bits])
    want = EXACT["sigmoid"](x.astype(np.float64))
    error = np.abs(compiled("sigmoid", bits)(x) - want) / np.spacing(np.abs(want).astype(TYPES[bits]))
    assert error.max() <= 4
    far = np.array([gone, 2 * gone, -1e30, -np.inf], TYPES[bits])
    assert (compiled("sigmoid", bits)(far) == 0).all()


# Ends of the range in which every result is an ordinary number, and from where it is 0 or infinite.
RANGES = {
    ("exp", 32): (-87.3365, 88.7228, -87.34, 88.73),
    ("exp", 64): (-708.396, 709.782, -708.4, 709.79),
    ("sigmoid", 32): (-87.3, 110.0, -88.1, math.inf),
    ("sigmoid", 64): (-708.0, 800.0, -709.2, math.inf),
    ("softplus", 32): (-87.3365, 110.0, -87.34, math.inf),
    ("softplus", 64): (-708.396, 800.0, -708.4, math.inf),
}


@pytest.mark.parametrize(("name", "bits"), RANGES)
def test_relative_error_is_small_as_far_as_there_are_ordinary_numbers(name, bits):
    lowest, highest, zero, infinite = RANGES[name, bits]
    x = np.linspace(-1.05 * abs(lowest), max(1.05 * highest, 110.0), 200_001).astype(TYPES[bits])
    with np.errstate(over="ignore"):
        want = EXACT[name](x.astype(np.longdouble))
        got = compiled(name, bits)(x).astype(np.longdouble)
    inside = (x >= lowest) & (x <= highest)
    error = np.abs(got[inside] / want[inside] - 1) / np.finfo(TYPES[bits]).eps
    assert error.max() <= 4
    assert (got[x < zero] == 0).all()
    assert (got[x > infinite] == np.inf).all()


def test_tanh_has_a_small_relative_error_near_zero_and_far_from_it():
    x = np.concatenate([np.logspace(-37, 38, 20_000), -np.logspace(-37, 38, 20_000)]).astype(np.float32)
    error = np.abs(compiled("tanh", 32)(x) / np.tanh(x.astype(np.float64)) - 1)
    assert error.max() <= 4 * np.finfo(np.float32).eps


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("payload", [0, 1, 0x155, 0x3FFFFF])
def test_every_nan_stays_nan(name, payload):
    x = np.array([0x7FC00000 | payload, 0xFFC00000 | payload], np.uint32).view(np.float32)
    assert np.isnan(compiled(name, 32)(x)).all()


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", LIMITS)
def test_special_values(name, bits):
    x = np.array([np.inf, -np.inf, 1e30, -1e30, 0.0, np.nan], TYPES[bits])
    got = compiled(name, bits)(x)
    with np.errstate(over="ignore", invalid="ignore"):
        want = EXACT[name](x.astype(np.float64))
        want = want.astype(TYPES[bits])
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-37)
